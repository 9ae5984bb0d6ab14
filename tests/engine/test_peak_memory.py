"""The peak is said once, beside what the planner expected of clips like those."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cacophony.data.batch import collate
from cacophony.engine import peak_memory as module
from cacophony.engine.config import MaeRunConfig
from cacophony.engine.distributed import World
from cacophony.engine.peak_memory import compare_with_plan, expected_bytes, mean_clip, peak_memory
from cacophony.engine.step_memory import ClipSize, StepProbe

WORLD = World(0, 1, torch.device("cpu"))
BATCH = collate(
    [np.zeros(16_000, np.int16), np.zeros(48_000, np.int16)], [0, 1], [np.zeros(4, np.int32), np.zeros(9, np.int32)]
)


def test_a_cpu_says_what_the_process_held(mae_config: MaeRunConfig) -> None:
    before = peak_memory(WORLD.device)["peak_resident_bytes"]
    held = torch.ones(max(int(before) // 4, 2**26))
    assert peak_memory(WORLD.device)["peak_resident_bytes"] >= held.nbytes
    assert "GiB resident; a CPU's is not planned" in compare_with_plan(mae_config, BATCH, WORLD)


def test_a_gpu_is_compared_with_the_plan_where_there_is_one(
    mae_config: MaeRunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "peak_memory", lambda device: {"peak_bytes": 3 * 2**30})
    monkeypatch.setattr(module, "expected_bytes", lambda config, clip, ranks: 4 * 2**30)
    line = compare_with_plan(mae_config, BATCH, WORLD)
    assert line == "peak memory: 3.00 GiB allocated, 4.00 GiB expected (-25.0%)"
    for config in (
        replace(mae_config, backend="reference"),
        replace(mae_config, update=replace(mae_config.update, implementation="per_tensor")),
    ):
        assert "the planner knows only" in compare_with_plan(config, BATCH, WORLD)


def test_ranks_that_share_the_update_are_expected_to_hold_their_shares(mae_config: MaeRunConfig) -> None:
    clip, update = ClipSize(48, 0), replace(mae_config.update, rho=0.05)
    shared, whole = (
        expected_bytes(replace(mae_config, update=replace(update, perturbation=perturbation)), clip, 2)
        for perturbation in ("global", "local")
    )
    state = StepProbe(mae_config, clip).state
    saved = sum(vars(state).values()) - sum(vars(state.shared(2)).values())
    assert whole - shared == saved > 0


def test_the_mean_clip() -> None:
    assert mean_clip(BATCH) == ClipSize(patches=96, text_tokens=6)
