"""Questions through a random model: what is learned, and that each figure is what it says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cacophony.__main__ import main
from cacophony.engine.evaluate import aqa, frozen_commands
from cacophony.engine.evaluate.aqa import evaluate_aqa, format_aqa
from cacophony.engine.evaluate.aqa_layouts import Questions, read_questions
from cacophony.engine.evaluate.mlp_probe import Examples, FittedProbe, ProbeConfig
from cacophony.engine.inference import Cacophony, load
from cacophony.errors import InputError

from .aqa_corpora import clotho_rows, write_clotho_aqa, write_clotho_csv, write_music_aqa

PROBE = ProbeConfig(hidden_layers=3, hidden_width=32, max_epochs=60, patience=30, learning_rate=1e-2)


@pytest.fixture(scope="module")
def model(contrastive_run: Path) -> Cacophony:
    return load(contrastive_run, device="cpu")


@pytest.fixture
def questions(tmp_path: Path) -> Questions:
    write_clotho_aqa(tmp_path)
    return read_questions(tmp_path, "clotho-aqa")


def test_what_a_tone_is_can_be_answered(model: Cacophony, questions: Questions):
    """Budget: four of five with a random model of 16 features; half would be chance."""
    result = evaluate_aqa(model, questions, probe=PROBE)
    for kind in ("binary", "word"):
        assert result[kind]["accuracy"] >= 0.8
        assert result[kind]["commonest"] == 0.5
        assert (result[kind]["questions"], result[kind]["answers"], result[kind]["unknown"]) == (18, 2, 0)
        assert result[kind]["r@1"] == result[kind]["accuracy"]
        assert "r@5" not in result[kind]  # two answers
    assert json.loads(json.dumps(result)) == result


def test_music_aqa_runs_the_same_way(model: Cacophony, tmp_path: Path):
    write_music_aqa(tmp_path)
    result = evaluate_aqa(model, read_questions(tmp_path, "music-aqa"), probe=PROBE)
    assert result["clips"] == 46
    assert (result["binary"]["questions"], result["word"]["questions"]) == (6, 6)


def test_the_order_of_rows_and_a_second_run_change_nothing(model: Cacophony, questions: Questions, tmp_path: Path):
    first = evaluate_aqa(model, questions, probe=PROBE)
    for split in questions.splits:
        write_clotho_csv(tmp_path, split, reversed(clotho_rows(split)))
    assert evaluate_aqa(model, read_questions(tmp_path, "clotho-aqa"), probe=PROBE) == first


def test_the_figures_are_those_of_the_logits(model: Cacophony, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Recall by hand from the classifier's logits, with ten answers and one that train does not know."""
    write_clotho_aqa(tmp_path)
    for split in ("train", "val", "test"):
        rows = [(f"{split}{i % 6}.wav", f"question {i}", f"answer{i % 10}", "yes") for i in range(40)]
        write_clotho_csv(tmp_path, split, rows)
    write_clotho_csv(tmp_path, "test", [*rows, ("test0.wav", "question", "unheard of", "yes")])
    seen: list[FittedProbe] = []
    inputs: list[torch.Tensor] = []

    def keep(train: Examples, *args: Any) -> FittedProbe:
        seen.append(fit(train, *args))
        return seen[-1]

    fit, logits_of = aqa.fit_probe, FittedProbe.logits
    monkeypatch.setattr(aqa, "fit_probe", keep)
    monkeypatch.setattr(FittedProbe, "logits", lambda self, x: (inputs.append(x), logits_of(self, x))[1])
    asked = read_questions(tmp_path, "clotho-aqa")
    result = evaluate_aqa(model, asked, probe=replace(PROBE, max_epochs=3))
    assert result["binary"] is None
    found = result["word"]
    assert (found["questions"], found["answers"], found["unknown"]) == (41, 10, 1)

    test = asked.splits["test"]
    features = np.concatenate(
        [model.embed_audio([q.audio for q in test]), model.embed_text([q.text for q in test])], axis=1
    )
    np.testing.assert_allclose(inputs[-1], features, atol=1e-5)
    logits = logits_of(seen[0], torch.from_numpy(features)).numpy()
    order = np.argsort(-logits, axis=1)
    for top in (1, 5):
        hits = [q.answer in {f"answer{a}" for a in row[:top]} for q, row in zip(test, order, strict=True)]
        assert found[f"r@{top}"] == pytest.approx(np.mean(hits))
    assert found["accuracy"] == found["r@1"]
    assert found["r@5"] < 1.0
    assert "r@10" not in found


def test_equal_logits_count_against_the_answer():
    targets = np.array([0, 2, -1])
    assert [aqa._recall(np.zeros((3, 3)), targets, top) for top in (1, 2, 3)] == [0.0, 0.0, pytest.approx(2 / 3)]


def test_missing_clips_and_kinds_are_said(model: Cacophony, questions: Questions, tmp_path: Path):
    (tmp_path / "audio_files/test3.wav").unlink()
    for split in questions.splits:
        write_clotho_csv(tmp_path, split, [row for row in clotho_rows(split) if row[2] not in ("yes", "no")])
    result = evaluate_aqa(model, read_questions(tmp_path, "clotho-aqa"), probe=PROBE)
    assert result["binary"] is None
    text = format_aqa(result)
    assert "45 clips found, 1 missing" in text
    assert "binary: not in all of train, val and test" in text


def test_splits_without_a_common_kind_are_refused(model: Cacophony, questions: Questions):
    none = replace(questions, splits={**questions.splits, "test": ()})
    with pytest.raises(InputError, match="no kind of question is in train, val and test"):
        evaluate_aqa(model, none, probe=PROBE)


def test_the_command_writes_what_it_prints(
    contrastive_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(frozen_commands, "PROBE", PROBE)
    write_clotho_aqa(tmp_path)
    out = tmp_path / "aqa.json"
    words = ["evaluate", "aqa", str(contrastive_run), "--data", str(tmp_path), "--dataset", "clotho-aqa"]
    assert main([*words, "--agreement", "unanimous", "--json", str(out), "--device", "cpu"]) == 0
    result = json.loads(out.read_text())
    assert result["agreement"] == "unanimous"
    assert result["word"]["questions"] == 6
    assert f"accuracy {100 * result['word']['accuracy']:.1f}" in capsys.readouterr().out


def test_a_run_of_stage_1_is_refused(mae_run: Path, tmp_path: Path, refused: Any):
    write_clotho_aqa(tmp_path)
    line = refused(["evaluate", "aqa", str(mae_run), "--data", str(tmp_path), "--dataset", "clotho-aqa"])
    assert "holds a stage-1 model; expected stage 2" in line
