"""A HEAR task through a random model: what is learned, repeated, counted and refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from cacophony.__main__ import main
from cacophony.engine.evaluate import frozen_commands
from cacophony.engine.evaluate.hear import HearModel, load_model
from cacophony.engine.evaluate.hear_probe import evaluate_hear, format_hear
from cacophony.engine.evaluate.hear_task import read_task
from cacophony.engine.evaluate.mlp_probe import ProbeConfig
from cacophony.errors import InputError

from .hear_tasks import write_events, write_scenes

TVT = ("train", "valid", "test")
PROBES = [
    ProbeConfig(hidden_layers=layers, hidden_width=32, max_epochs=60, patience=20, learning_rate=1e-2)
    for layers in (1, 2)
]


@pytest.fixture(scope="module")
def model(mae_run: Path) -> HearModel:
    return load_model(mae_run)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hear") / "scenes"
    write_scenes(directory, TVT, evaluation=["top1_acc", "mAP", "a_score_of_others"])
    return directory


def evaluate(model: HearModel, directory: Path) -> dict[str, Any]:
    return evaluate_hear(model, read_task(directory), probes=PROBES)


def test_low_and_high_tones_are_told_apart(model: HearModel, scenes: Path):
    """Budget: four of five of a random encoder of 16 features; half would be chance."""
    result = evaluate(model, scenes)
    assert result["scores"].keys() == {"top1_acc", "mAP"}
    assert min(result["scores"].values()) >= 0.8
    assert result["deviations"] == {}
    assert (result["sounds"], result["missing"], result["not_computed"]) == (48, [], ["a_score_of_others"])
    assert json.loads(json.dumps(result)) == result
    assert "top1_acc" in format_hear(result)


def test_a_score_without_a_finite_value_is_said(model: HearModel, tmp_path: Path):
    write_scenes(tmp_path, TVT, each=4, evaluation=["top1_acc", "d_prime"])
    result = evaluate(model, tmp_path)
    assert result["scores"]["d_prime"] is None  # both classes are separated
    assert "undefined, or infinite" in format_hear(result)
    json.dumps(result, allow_nan=False)


def test_the_same_seed_gives_the_same_result(model: HearModel, scenes: Path):
    assert evaluate(model, scenes) == evaluate(model, scenes)


def test_folds_are_averaged_and_the_first_chooses_the_probe(model: HearModel, tmp_path: Path):
    write_scenes(tmp_path, ["fold00", "fold01", "fold02"], each=4, split_mode="new_split_kfold")
    result = evaluate(model, tmp_path)
    tests = [turn["scores"]["top1_acc"] for turn in result["turns"]]
    assert [turn["test"] for turn in result["turns"]] == ["fold00", "fold01", "fold02"]
    assert result["scores"]["top1_acc"] == pytest.approx(sum(tests) / 3)
    assert set(result["deviations"]) == {"top1_acc"}


def test_events_are_found_where_they_are(model: HearModel, tmp_path: Path):
    """Budget: half of the onsets, of a random encoder; a probe that says nothing finds none."""
    pytest.importorskip("sed_eval")
    write_events(tmp_path)
    result = evaluate(model, tmp_path)
    assert result["scores"]["event_onset_200ms_fms"] > 0.5
    assert result["scores"]["segment_1s_er"] < 1.0
    assert set(result["turns"][0]["smoothing"]) == {"median_ms", "shortest_ms"}


def test_missing_sounds_are_counted_and_said(model: HearModel, tmp_path: Path):
    write_scenes(tmp_path, TVT)
    (tmp_path / "16000/test/test3.wav").unlink()
    result = evaluate(model, tmp_path)
    assert (result["sounds"], result["missing"]) == (47, ["test/test3.wav"])
    assert "1 missing" in format_hear(result)
    assert "test3.wav" in format_hear(result)


def test_a_task_with_scores_of_others_alone_is_refused(model: HearModel, tmp_path: Path):
    write_scenes(tmp_path, TVT, each=2, evaluation=["seld"])
    with pytest.raises(InputError, match=r"scored by seld; expected one of top1_acc"):
        evaluate(model, tmp_path)


def test_the_command_writes_what_it_prints(
    contrastive_run: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(frozen_commands, "PROBES", PROBES)
    out = tmp_path / "hear.json"
    words = ["evaluate", "hear", str(contrastive_run), "--task-dir", str(scenes), "--fixed-seconds", "0.5"]
    assert main([*words, "--json", str(out), "--device", "cpu"]) == 0
    result = json.loads(out.read_text())
    assert result["fixed_seconds"] == 0.5
    assert f"{result['scores']['top1_acc']:.4f}" in capsys.readouterr().out
