"""The demo from end to end, with fewer clips and steps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cacophony.engine import demo
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig
from cacophony.errors import InputError


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, mae_config: MaeRunConfig, contrastive_config: ContrastiveRunConfig):
    monkeypatch.setattr(demo, "TRAIN_CLIPS", 40)
    monkeypatch.setattr(demo, "TEST_CLIPS", 30)
    monkeypatch.setattr(demo, "demo_stage1", lambda: replace(mae_config, steps=3))
    monkeypatch.setattr(demo, "demo_stage2", lambda: replace(contrastive_config, steps=3))


def test_the_demo_leaves_two_runs_figures_and_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "demo"
    assert demo.demo_command(out=out) == 0
    metrics = json.loads((out / "retrieval.json").read_text())
    assert metrics["clips"] == 30
    for picture in ("mae/loss.png", "contrastive/loss.png", "embeddings.png", "reconstruction.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    record = json.loads((out / "contrastive" / "run.json").read_text())
    assert record["init"] == str(out / "mae")

    said = capsys.readouterr().out
    assert "30 held-out clips" in said
    assert sum(line.startswith("  0") and ".wav (" in line for line in said.splitlines()) == len(demo.CAPTIONED_SOURCES)
    assert str(out) in said.splitlines()[-1]


def test_the_demo_does_not_write_into_a_place_in_use(tmp_path: Path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        demo.demo_command(out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
