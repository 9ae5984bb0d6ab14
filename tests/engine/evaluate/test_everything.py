"""`cacophony evaluate all`: runs what it finds, says what it did not run, and goes on where it was."""

import json
from pathlib import Path

import pytest
from cacophony.__main__ import main
from cacophony.engine.evaluate import caption_metrics, everything, tasks
from cacophony.engine.evaluate.caption_metrics import CaptionMetrics
from cacophony.engine.evaluate.datasets.layouts import read_captioned, read_labelled
from cacophony.engine.evaluate.everything import evaluate_all, find_tasks
from cacophony.engine.evaluate.retrieval import evaluate_retrieval
from cacophony.engine.evaluate.zero_shot import evaluate_zero_shot
from cacophony.engine.inference import Cacophony
from cacophony.errors import InputError

from .corpora import make_clotho, make_esc50, make_tut2017


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_clotho(root / "clotho", 12)
    make_esc50(root / "sounds" / "ESC-50-master", 20)
    make_tut2017(root / "tut", 10)
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
    monkeypatch.setattr("cacophony.engine.evaluate.captioning.caption_metrics", lambda *_: found)
    whole = [task for task in tasks.TASKS if task.name != "caption"]
    ready = [tasks.Task(t.name, t.dataset, t.fits, t.run) for t in tasks.TASKS if t.name == "caption"]
    monkeypatch.setattr(everything, "TASKS", (*whole, *ready))


@pytest.mark.usefixtures("no_caption_package")
def test_every_dataset_that_is_there_is_evaluated(
    model: Cacophony, model_directory: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "report"
    assert main(["evaluate", "all", str(model_directory), "--data-root", str(data_root), "--out", str(out)]) == 0
    report = json.loads((out / "evaluation.json").read_text())
    titles = ["retrieval: clotho (clotho)", "zero-shot: esc50 (sounds/ESC-50-master)", "zero-shot: tut2017 (tut)"]
    assert list(report["results"]) == titles
    assert list(report["not_run"]) == ["caption: clotho (clotho)"]
    assert "cacophony-engine[evaluate]" in report["not_run"]["caption: clotho (clotho)"]
    retrieval = evaluate_retrieval(model, read_captioned(data_root / "clotho"), progress=False)
    assert report["results"][titles[0]] == json.loads(json.dumps(retrieval.record()))
    zero_shot = evaluate_zero_shot(model, read_labelled(data_root / "tut"), progress=False)
    assert report["results"][titles[2]] == json.loads(json.dumps(zero_shot.record()))

    table = (out / "evaluation.md").read_text()
    assert f"| top_1 | {zero_shot.metrics['top_1']:.3f} |" in table
    clotho, esc50, tut = (table[table.index(f"## {title}") :].split("\n## ")[0] for title in titles)
    assert "| 0.200 |" in clotho
    assert "| 0.934 |" in esc50
    assert "authors" not in tut
    assert "12 clips found, 0 missing" in clotho
    assert {path.name for path in out.glob("*.png")} == {"zero-shot-esc50.png", "zero-shot-tut2017.png"}
    printed = capsys.readouterr()
    assert all(title in printed.out for title in titles)
    assert printed.err == ""


@pytest.mark.usefixtures("fake_caption_metrics")
def test_a_second_call_computes_nothing_and_reports_the_same(
    model: Cacophony, model_directory: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = model, model_directory, data_root, tmp_path
    evaluate_all(*arguments, progress=False, tasks=everything.TASKS)
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
    evaluate_all(*arguments, progress=False, tasks=everything.TASKS)
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


def test_a_folder_without_datasets_is_refused_with_what_was_looked_for(tmp_path: Path):
    with pytest.raises(InputError, match=r"no dataset.*audiocaps, clotho, esc50, shards, tut2017, urbansound8k, vgg"):
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
