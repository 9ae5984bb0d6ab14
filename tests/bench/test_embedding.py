"""The bench of embeddings: both ways give the same numbers, and what is reported is what was measured."""

import json
from pathlib import Path

import pytest
from cacophony.__main__ import main


def test_both_ways_embed_the_same_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "embedding.json"
    argv = ["--size", "demo", "--clips", "9", "--seconds", "0.3", "1.2", "--rounds", "2", "--device", "cpu"]
    assert main(["bench", "embedding", *argv, "--json", str(file)]) == 0
    figures, printed = json.loads(file.read_text()), capsys.readouterr().out
    found = figures["embedding"]
    assert found["ratio"] == pytest.approx(found["one_by_one_seconds"] / found["batched_seconds"])
    assert 0 < found["largest_difference"] < 1e-5
    assert 9 * 0.3 < found["audio_seconds"] < 9 * 1.2
    assert f"one by one takes {found['ratio']:.2f} times" in printed
    assert figures["settings"]["batch_size"] == 64
    assert figures["machine"]["commit"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--clips", "0"], "--clips is 0; expected at least 1"), (["--seconds", "2", "1"], "--seconds is 2 1; expected")],
)
def test_wrong_numbers_are_named(capsys: pytest.CaptureFixture[str], flags: list[str], expected: str) -> None:
    assert main(["bench", "embedding", *flags]) == 2
    assert expected in capsys.readouterr().err
