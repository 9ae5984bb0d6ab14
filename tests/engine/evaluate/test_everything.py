"""`cacophony evaluate all`: runs what it finds, says what it did not run, and goes on where it was."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cacophony.__main__ import main
from cacophony.engine.evaluate import aqa, caption_metrics, hear_probe, tasks
from cacophony.engine.evaluate.aqa import evaluate_aqa
from cacophony.engine.evaluate.aqa_layouts import read_questions
from cacophony.engine.evaluate.caption_metrics import CaptionMetrics
from cacophony.engine.evaluate.datasets.layouts import read_captioned, read_labelled
from cacophony.engine.evaluate.everything import evaluate_all, find_tasks
from cacophony.engine.evaluate.gap import evaluate_gap, measure_gap
from cacophony.engine.evaluate.hear import HearModel
from cacophony.engine.evaluate.hear_probe import evaluate_hear
from cacophony.engine.evaluate.hear_task import read_task
from cacophony.engine.evaluate.mlp_probe import ProbeConfig
from cacophony.engine.evaluate.retrieval import evaluate_retrieval
from cacophony.engine.evaluate.zero_shot import evaluate_zero_shot
from cacophony.engine.inference import Cacophony, load
from cacophony.engine.projection import PROJECTIONS, principal_plane
from cacophony.errors import InputError

from .aqa_corpora import write_clotho_aqa, write_music_aqa
from .corpora import make_clotho, make_esc50, make_tut2017
from .hear_tasks import write_events, write_scenes


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_clotho(root / "clotho", 12)
    make_esc50(root / "sounds" / "ESC-50-master", 20)
    make_tut2017(root / "tut", 10)
    write_clotho_aqa(root / "questions")
    write_music_aqa(root / "music")
    write_scenes(root / "hear" / "tasks" / "esc50-v2.0.0-full", ("train", "valid", "test"), each=4)
    (root / "notes").mkdir()
    return root


@pytest.fixture
def no_caption_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caption_metrics.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def fake_caption_metrics(monkeypatch: pytest.MonkeyPatch):
    """Captioning as if pycocoevalcap were there: what it gives is tested elsewhere."""
    found = CaptionMetrics({"cider": 0.5}, {"spice": "needs Java"}, "rules")
    monkeypatch.setattr("cacophony.engine.evaluate.captioning.check_installed", lambda _: None)
    monkeypatch.setattr(tasks, "check_installed", lambda: None)
    monkeypatch.setattr("cacophony.engine.evaluate.captioning.caption_metrics", lambda *_: found)


@pytest.fixture(autouse=True)
def quick_probes_and_maps(monkeypatch: pytest.MonkeyPatch):
    """Small classifiers, and principal components in place of UMAP, which compiles for half a minute."""
    probe = ProbeConfig(hidden_layers=1, hidden_width=16, max_epochs=10, learning_rate=1e-2)
    monkeypatch.setattr(tasks, "PROBE", probe)
    monkeypatch.setattr(tasks, "PROBES", [probe])
    monkeypatch.setitem(PROJECTIONS, "umap", principal_plane)
    monkeypatch.setattr(tasks, "require_umap", lambda: None)


@pytest.mark.usefixtures("no_caption_package")
def test_every_dataset_that_is_there_is_evaluated(
    model: Cacophony, model_directory: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "report"
    assert main(["evaluate", "all", str(model_directory), "--data-root", str(data_root), "--out", str(out)]) == 0
    report = json.loads((out / "evaluation.json").read_text())
    titles = [
        "retrieval: clotho (clotho)",
        "zero-shot: esc50 (sounds/ESC-50-master)",
        "zero-shot: tut2017 (tut)",
        "aqa: clotho-aqa (questions)",
        "aqa: music-aqa (music)",
        "hear (hear/tasks/esc50-v2.0.0-full)",
        "gap: clotho (clotho)",
    ]
    assert list(report["results"]) == titles
    assert list(report["not_run"]) == ["caption: clotho (clotho)"]
    assert "cacophony-engine[evaluate]" in report["not_run"]["caption: clotho (clotho)"]
    retrieval = evaluate_retrieval(model, read_captioned(data_root / "clotho"), progress=False)
    assert report["results"][titles[0]] == json.loads(json.dumps(retrieval.record()))
    zero_shot = evaluate_zero_shot(model, read_labelled(data_root / "tut"), progress=False)
    assert report["results"][titles[2]] == json.loads(json.dumps(zero_shot.record()))

    table = (out / "evaluation.md").read_text()
    assert f"| top_1 | {zero_shot.metrics['top_1']:.3f} |" in table
    clotho, esc50, tut, questions, music, hear, gap = (
        table[table.index(f"## {title}") :].split("\n## ")[0] for title in titles
    )
    assert "| 0.200 |" in clotho
    assert "| 0.934 |" in esc50
    assert f"| top_1 | {zero_shot.metrics['top_1']:.3f} |" in tut
    assert "| 0.486 |" in tut
    answers = evaluate_aqa(model, read_questions(data_root / "music", "music-aqa"), probe=tasks.PROBE)
    assert report["results"][titles[4]] == json.loads(json.dumps(answers))
    assert f"| binary accuracy | {answers['binary']['accuracy']:.3f} |  | not known |" in music
    assert "46 clips found, 0 missing" in questions
    scenes = evaluate_hear(HearModel(model.model), read_task(data_root / titles[5][6:-1]), probes=tasks.PROBES)
    assert report["results"][titles[5]] == json.loads(json.dumps(scenes))
    assert f"| top1_acc | {scenes['scores']['top1_acc']:.3f} |  | 0.970 |" in hear
    assert f"| gap | {measure_gap(model, read_captioned(data_root / 'clotho')).gap:.3f} |  | not known |" in gap
    assert "holds no checkpoints" in gap
    assert report["authors"][titles[2]] == {"top_1": 0.486}
    assert "12 clips found, 0 missing" in clotho
    pictures = {"zero-shot-esc50.png", "zero-shot-tut2017.png", "gap-clotho-umap.png"}
    assert {path.name for path in out.glob("*.png")} == pictures
    printed = capsys.readouterr()
    assert all(title in printed.out for title in titles)
    assert printed.err == ""


@pytest.mark.usefixtures("fake_caption_metrics")
def test_a_second_call_computes_nothing_and_reports_the_same(
    model: Cacophony, model_directory: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = model, model_directory, data_root, tmp_path
    evaluate_all(*arguments, progress=False)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("evaluation.*")}
    assert b"spice was not computed: needs Java" in first["evaluation.md"]
    captions = json.loads(first["evaluation.json"])["results"]["caption: clotho (clotho)"]["captions"]
    assert [one["caption"] for one in captions] == model.caption(
        [clip.read() for clip in read_captioned(data_root / "clotho").clips]
    )

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    for name in ("embed_audio", "embed_text", "caption"):
        monkeypatch.setattr(Cacophony, name, never)
    for module, name in ((hear_probe, "_embed_scenes"), (hear_probe, "fit_best_probe"), (aqa, "fit_probe")):
        monkeypatch.setattr(module, name, never)
    evaluate_all(*arguments, progress=False)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("evaluation.*")} == first
    assert {path.suffix for path in (tmp_path / "computed").iterdir()} == {".safetensors", ".json"}


@pytest.mark.usefixtures("no_caption_package")
def test_the_report_lies_in_the_run_where_no_other_place_is_named(
    model: Cacophony, model_directory: Path, tmp_path: Path
):
    run = tmp_path / "run"
    run.mkdir()
    for path in model_directory.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    make_tut2017(tmp_path / "data", 3)
    assert main(["evaluate", "all", str(run), "--data-root", str(tmp_path / "data")]) == 0
    assert (run / "evaluation" / "evaluation.md").is_file()


@pytest.mark.usefixtures("no_caption_package")
def test_two_copies_of_a_dataset_have_a_part_and_a_picture_each(
    model: Cacophony, model_directory: Path, tmp_path: Path
):
    for name in ("first", "second"):
        make_tut2017(tmp_path / "data" / name, 3)
    found = evaluate_all(model, model_directory, tmp_path / "data", tmp_path / "out", progress=False)
    assert list(found.outcomes) == ["zero-shot: tut2017 (first)", "zero-shot: tut2017 (second)"]
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


@pytest.mark.usefixtures("no_caption_package")
def test_the_gap_of_a_run_is_that_of_each_checkpoint(
    contrastive_run: Path, held_out_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = load(contrastive_run, device="cpu")
    found = evaluate_all(run, contrastive_run, held_out_shards, tmp_path, progress=False)
    gaps = [(step, gap.gap) for step, gap in evaluate_gap(contrastive_run, read_captioned(held_out_shards))]
    assert [step for step, _ in gaps] == [4, 6]
    outcome = found.outcomes["gap: shards"]
    assert outcome.record["checkpoints"] == [{"step": step, "gap": pytest.approx(gap)} for step, gap in gaps]
    assert outcome.figures == {f"gap at step {step}": (pytest.approx(gap), None) for step, gap in gaps}
    assert {path.name for path in tmp_path.glob("gap-*.png")} == {"gap-shards.png", "gap-shards-umap.png"}

    def absent() -> None:
        raise InputError("the projection umap needs umap-learn")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    for name in ("embed_audio", "embed_text"):
        monkeypatch.setattr(Cacophony, name, never)
    monkeypatch.setattr(tasks, "require_umap", absent)
    again = evaluate_all(run, contrastive_run, held_out_shards, tmp_path, progress=False)
    assert again.outcomes["gap: shards"].record == outcome.record
    assert "gap-shards-umap.png was not drawn: the projection umap needs" in again.outcomes["gap: shards"].notes[1]


def test_what_sed_eval_is_needed_for_is_reported_where_it_is_not_installed(
    model: Cacophony, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def absent() -> None:
        raise InputError("event tasks need sed_eval")

    write_events(tmp_path / "data" / "office")
    monkeypatch.setattr(tasks, "require_sed_eval", absent)
    found = evaluate_all(model, model_directory, tmp_path / "data", tmp_path / "out", progress=False)
    assert found.not_run == {"hear (office)": "event tasks need sed_eval"}
    assert "Not run: event tasks need sed_eval." in (tmp_path / "out" / "evaluation.md").read_text()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda root: (root / "questions" / "clotho_aqa_val.csv").unlink(),
            "has no clotho_aqa_val.csv; expected Clotho",
        ),
        (lambda root: (root / "music" / "json" / "avqa-val.json").unlink(), "has no avqa-val.json, nor json/avqa-val"),
        (lambda root: (root / "hear" / "labelvocabulary.csv").unlink(), "has no labelvocabulary.csv; expected a task"),
    ],
)
def test_a_dataset_that_lacks_a_file_is_said_with_what_was_looked_for(
    model: Cacophony, model_directory: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
):
    write_clotho_aqa(tmp_path / "questions")
    write_music_aqa(tmp_path / "music")
    write_scenes(tmp_path / "hear", ("train", "valid", "test"), each=2)
    spoil(tmp_path)
    with pytest.raises(InputError, match=said):
        evaluate_all(model, model_directory, tmp_path, tmp_path / "out", progress=False)


def test_a_folder_without_datasets_is_refused_with_what_was_looked_for(tmp_path: Path):
    with pytest.raises(
        InputError, match=r"no dataset.*audiocaps, clotho, clotho-aqa, esc50, hear, music-aqa, shards, tut"
    ):
        find_tasks(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        find_tasks(tmp_path / "absent")


def test_a_stage_1_run_is_refused(mae_run: Path, data_root: Path, refused):
    for words in (
        ["retrieval", str(mae_run), "--data", str(data_root / "clotho")],
        ["zero-shot", str(mae_run), "--data", str(data_root / "tut")],
        ["all", str(mae_run), "--data-root", str(data_root)],
    ):
        assert "stage-1 model; expected stage 2" in refused(["evaluate", *words])
    assert not (mae_run / "evaluation").exists()
