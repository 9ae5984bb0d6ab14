"""The step bench: what it times, and what it reports."""

import json
from pathlib import Path

import pytest
import torch
from cacophony.__main__ import main
from cacophony.bench.steps import CAPTION_TOKENS, CLIP_SECONDS, LAYOUTS, STAGES, noise_batch


def test_the_batch_is_ragged_and_the_same_for_every_layout():
    batch, again = noise_batch(20, 100), noise_batch(20, 100)
    assert torch.equal(batch.wave, again.wave)
    assert torch.equal(batch.token_ids, again.token_ids)
    seconds = batch.wave_lengths / 16_000
    assert CLIP_SECONDS[0] <= float(seconds.min()) < float(seconds.max()) <= CLIP_SECONDS[1]
    assert CAPTION_TOKENS[0] <= int(batch.token_lengths.min()) < int(batch.token_lengths.max()) <= CAPTION_TOKENS[1]


def test_every_stage_and_layout_is_timed_with_machine_and_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "steps.json"
    assert main(["bench", "steps", "--clips", "2", "--rounds", "1", "--device", "cpu", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert [(t["stage"], t["layout"]) for t in figures["steps"]] == [(s, x) for s in STAGES for x in LAYOUTS]
    for stage in STAGES:
        packed, padded = (t for t in figures["steps"] if t["stage"] == stage)
        assert figures["padded_over_packed"][stage] == pytest.approx(padded["seconds"] / packed["seconds"])
        # The layouts do the same work: rates differ by the time alone.
        assert packed["valid_tokens_per_s"] * packed["seconds"] == pytest.approx(
            padded["valid_tokens_per_s"] * padded["seconds"]
        )
    assert figures["versions"]["torch"] == torch.__version__
    assert "times as long as packed" in capsys.readouterr().out


def test_a_wrong_number_of_rounds_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "steps", "--rounds", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
