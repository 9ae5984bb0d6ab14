"""Skipped steps in a row are noticed once their counts have arrived, and their batches are named."""

import json
from pathlib import Path

import pytest
import torch
from cacophony.engine.skip_watch import SkipWatch


def fed(watch: SkipWatch, counts: list[int], first: int = 0) -> list[bool]:
    """Feed steps that are made of clips 10 · step and the next; returns whether each tripped the watch."""
    found = []
    for step, count in enumerate(counts, first):
        watch.add(step, torch.tensor(count), torch.tensor([10 * step, 10 * step + 1]))
        found.append(watch.tripped())
    return found


def test_the_limit_is_reached_by_steps_in_a_row_alone():
    assert fed(SkipWatch(3), [1, 2, 0, 1, 2, 3]) == [False] * 5 + [True]
    assert fed(SkipWatch(1), [0, 1]) == [False, True]


def test_a_continued_run_counts_on():
    watch = SkipWatch(3)
    assert fed(watch, [3], first=7) == [True]
    assert watch.in_a_row == 3


def test_the_skipped_batches_alone_are_saved(tmp_path: Path):
    watch = SkipWatch(2)
    fed(watch, [0, 1, 0, 1, 2])
    watch.save(tmp_path / "skipped.json", lambda i: f"clip{i}")
    assert json.loads((tmp_path / "skipped.json").read_text()) == {
        "skipped_in_a_row": 2,
        "steps": [
            {"step": 3, "sample_index": [30, 31], "keys": ["clip30", "clip31"]},
            {"step": 4, "sample_index": [40, 41], "keys": ["clip40", "clip41"]},
        ],
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: counts arrive late only from a device")
def test_a_count_on_the_device_is_not_waited_for():
    watch = SkipWatch(1)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(500_000_000)
        watch.add(0, torch.ones((), dtype=torch.int64, device="cuda"), torch.tensor([5]))
        assert not watch.tripped()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize()
    assert watch.tripped()
