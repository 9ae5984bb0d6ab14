"""A soak sees memory and files that are kept from round to round, and calls a process that stays as it is just that."""

import json
import mmap
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cacophony.__main__ import main
from cacophony.bench import soak as soak_module
from cacophony.bench.soak import MIB, MIN_ROUNDS, Round, SoakSettings, judge, sample, soak
from cacophony.engine.presets import demo_stage1, demo_stage2
from cacophony.errors import RunError
from cacophony.models.config import AudioMAEConfig, TextConfig, TransformerConfig

SETTINGS = SoakSettings(
    minutes=60.0,
    warm_up_minutes=10.0,
    steps=2,
    train_clips=40,
    test_clips=6,
    sample_seconds=0.02,
    limit_mib_per_hour=32.0,
    device="cpu",
)


def rounds(mib_per_hour: float = 0.0, files_per_round: float = 0.0, count: int = 20) -> list[Round]:
    """Rounds of three minutes whose memory jumps about by 40 MiB; the first ones grow by 100 MiB each."""
    jumps = np.random.default_rng(0).uniform(-20, 20, count)
    minutes = [3.0 * (number + 1) for number in range(count)]
    resident = [
        900 + jump + mib_per_hour * at / 60 - 100 * max(4 - number, 0)
        for number, (at, jump) in enumerate(zip(minutes, jumps, strict=True))
    ]
    return [
        Round(60 * at, size * MIB, int(12 + files_per_round * number))
        for number, (at, size) in enumerate(zip(minutes, resident, strict=True))
    ]


def test_a_process_that_jumps_about_but_stays_is_called_that() -> None:
    verdict = judge(rounds(), SETTINGS)
    assert verdict.problems == ()
    assert verdict.rounds == 16  # those that began in the first ten minutes are left out
    assert verdict.resident_mib == pytest.approx(900, abs=20)
    assert abs(verdict.mib_per_hour) < 32
    assert (verdict.descriptors, verdict.more_descriptors) == (12, 0)


@pytest.mark.parametrize(
    ("leak", "problem"),
    [
        ({"mib_per_hour": 100.0}, r"resident memory grows by (8|9|10|11)\d* MiB an hour, more than 32$"),
        ({"files_per_round": 1.0}, "15 more file descriptors are open than after the first round that counts$"),
        ({"files_per_round": 0.07}, "1 more file descriptors"),
    ],
)
def test_what_grows_is_found(leak: dict[str, Any], problem: str) -> None:
    (found,) = judge(rounds(**leak), SETTINGS).problems
    assert re.match(problem, found), found


def test_too_few_rounds_are_not_judged() -> None:
    with pytest.raises(RunError, match="3 rounds began after the warm-up, expected at least 4 to judge"):
        judge(rounds(count=7), SETTINGS)


@pytest.fixture
def leaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """Rounds that do nothing but keep 4 MiB and a file."""
    kept: list[Any] = []

    def leak(*_: Any) -> None:
        memory = mmap.mmap(-1, 4 * MIB)  # not from the heap, which may have as much that was freed before
        memory.write(b"\1" * (4 * MIB))
        kept.append((memory, (tmp_path / f"{len(kept)}").open("wb")))
        time.sleep(0.05)

    monkeypatch.setattr(soak_module, "_prepare", lambda *_: [])
    monkeypatch.setattr(soak_module, "_round", leak)
    yield kept
    for memory, file in kept:
        memory.close()
        file.close()


def test_a_planted_leak_fails_and_is_drawn(
    leaks: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "soak.json"
    words = "bench soak --minutes 0.01 --warm-up-minutes 0 --sample-seconds 0.02 --json"
    assert main([*words.split(), str(file)]) == 1
    said = capsys.readouterr()
    assert "THEY GROW" in said.out
    assert "resident memory grows by" in said.err
    assert f"{len(leaks) - 1} more file descriptors are open" in said.err
    found = json.loads(file.read_text())
    assert len(found["rounds"]) == len(leaks) >= MIN_ROUNDS
    assert found["rounds"][-1]["resident_bytes"] - found["rounds"][0]["resident_bytes"] > 3 * MIB * (len(leaks) - 2)
    assert len(found["samples"]) > len(leaks)
    assert len(found["verdict"]["problems"]) == 2
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_children_count() -> None:
    before = sample(0.0)
    with subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = sample(0.0)
        child.communicate(b"\n")
    assert during.resident_bytes > before.resident_bytes + 4 * MIB
    assert during.descriptors >= before.descriptors + 3


def test_a_round_trains_resumes_evaluates_and_cleans_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = TransformerConfig(width=16, layers=1, heads=2, mlp_width=32)
    mae = replace(demo_stage1(), model=AudioMAEConfig(encoder=tiny, decoder=tiny), batch_size=4, micro_batch_size=4)
    text = TextConfig(width=16, layers=1, heads=2, mlp_width=32, vocab_size=300, max_positions=40)
    both = replace(demo_stage2(), batch_size=4, micro_batch_size=4)
    both = replace(both, model=replace(both.model, audio=tiny, text=text, pool_heads=2, projection_width=16))
    monkeypatch.setattr(soak_module, "demo_stage1", lambda: mae)
    monkeypatch.setattr(soak_module, "demo_stage2", lambda: both)
    asked: list[tuple[str, int, bool]] = []
    train = soak_module.train

    def noted(stage: Any, config: Any, *args: Any, **options: Any) -> Any:
        asked.append((stage, config.steps, options.get("resume", False)))
        return train(stage, config, *args, **options)

    monkeypatch.setattr(soak_module, "train", noted)
    measured = soak(replace(SETTINGS, minutes=1e-3, warm_up_minutes=0.0), tmp_path, lambda _: None)
    assert asked == [("mae", 1, False), ("mae", 2, True), ("contrastive", 1, False), ("contrastive", 2, True)]
    assert len(measured.rounds) == 1
    assert measured.samples
    assert not (tmp_path / "runs").exists()
