"""The packing bench: what it compares, and what it reports."""

import json
from pathlib import Path

import numpy as np
import pytest
from cacophony.__main__ import main
from cacophony.bench.packing import FULL_PATCHES, FULL_SHARE, clip_lengths


def test_the_share_of_full_clips_and_the_lengths_of_the_others_are_as_stated() -> None:
    lengths = clip_lengths(1000, np.random.default_rng(1))
    assert (lengths == FULL_PATCHES).mean() == FULL_SHARE
    assert lengths.min() >= 48
    assert not (lengths % 8).any()
    assert 0.70 < lengths.mean() / FULL_PATCHES < 0.76


def test_both_towers_are_compared_on_the_same_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "packing.json"
    argv = ["--size", "demo", "--layers", "1", "--clips", "5", "--rounds", "2", "--device", "cpu"]
    assert main(["bench", "packing", *argv, "--json", str(file)]) == 0
    figures, printed = json.loads(file.read_text()), capsys.readouterr().out
    for tower, slots in (("text", 77), ("audio", 512)):
        found = figures[tower]
        assert found["ratio"] == pytest.approx(found["padded_seconds"] / found["packed_seconds"])
        assert found["padded_tokens"] == 5 * slots
        assert 0 < found["valid_tokens"] < found["padded_tokens"]
        assert f"{tower}: padded takes {found['ratio']:.2f} times" in printed
    assert figures["settings"]["backend"] == "reference"
    assert figures["machine"]["commit"]


def test_wrong_numbers_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "packing", "--layers", "0"]) == 2
    assert "--layers is 0; expected at least 1" in capsys.readouterr().err
