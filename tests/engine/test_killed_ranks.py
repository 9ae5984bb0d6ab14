"""Two ranks killed at random moments and continued end byte for byte where two uninterrupted ones end.

``CACOPHONY_KILLS`` says how many moments there are; by default so many that they take some seconds.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cacophony.engine.config import ContrastiveRunConfig
from cacophony.engine.telemetry import read_log

StartRanks = Callable[..., list[Any]]
KILLS = int(os.environ.get("CACOPHONY_KILLS", "3"))
MEASURED = ("_per_s", "_share", "_bytes")  # depends on the clock or the process


def content(run: Path) -> dict[str, bytes]:
    files = [path for path in sorted((run / "checkpoints").rglob("*")) if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in [*files, run / "model.safetensors"]}


def results(run: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if not name.endswith(MEASURED)} for line in read_log(run)]


def lines(run: Path) -> int:
    """Steps that the run has logged; of a run that continues, those up to its checkpoint."""
    return (run / "log.jsonl").read_bytes().count(b"\n") if (run / "log.jsonl").exists() else 0


def assert_same(run: Path, whole: Path) -> None:
    found, expected = content(run), content(whole)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert results(run) == results(whole)
    assert not list((run / "checkpoints").glob(".*"))


def test_ranks_killed_at_random_moments_end_as_if_nothing_had_happened(
    start_ranks: StartRanks,
    contrastive_config: ContrastiveRunConfig,
    save_toml: Callable[[Any], Path],
    shards: Path,
    tmp_path: Path,
):
    """One rank, chosen at random, gets SIGKILL up to four steps on, at a random moment; the other ends by itself.

    Where the run has ended before it is killed, the next kill is of another one.
    """
    toml = save_toml(replace(contrastive_config, steps=12, save_every_steps=3, timeout_seconds=30.0))
    argv = ["train", "contrastive", "--data", str(shards), "--preset", "demo", "--config", str(toml), "--resume"]
    whole, number, hits = tmp_path / "whole", 0, 0
    for code, output in [rank.ended() for rank in start_ranks([*argv, "--out", str(whole)])]:
        assert code == 0, output

    chance = random.Random(8)
    while hits < KILLS:
        out = tmp_path / f"run {number}"
        steps = lines(out) + chance.randint(1, 4)
        ranks = start_ranks([*argv, "--out", str(out)])
        while ranks[0].process.is_alive() and lines(out) < steps:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.5))
        victim = chance.randrange(2)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(ranks[victim].process.pid, signal.SIGKILL)
        (code, _), (other, output) = ranks[victim].ended(), ranks[1 - victim].ended()
        assert other in (0, 1), output  # with 1 it names the rank that is gone
        assert "Traceback" not in output, output
        if code == 0:
            assert_same(out, whole)
            number += 1
        hits += code != 0
    out = tmp_path / f"run {number}"
    for code, output in [rank.ended() for rank in start_ranks([*argv, "--out", str(out)])]:
        assert code == 0, output
    assert_same(out, whole)
