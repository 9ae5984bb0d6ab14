"""Between two lines of the log a step never waits for the device: from the batch as loaded to the new weights."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cacophony.data.batch import AudioTextBatch
from cacophony.data.noise import noise_batch
from cacophony.engine.build import build_model, build_objective, build_updater
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig, Stage
from cacophony.engine.distributed import World
from cacophony.engine.presets import preset
from cacophony.engine.step_memory import META, ClipSize, batch_of
from cacophony.engine.update import Counters, Updater
from cacophony.kernels.backend import choose, use_backend
from cacophony.models.layers import init_weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

STAGES: tuple[Stage, ...] = ("mae", "contrastive")
CLIPS = 4

every_stage = pytest.mark.parametrize("stage", STAGES)


def config_of(stage: Stage) -> MaeRunConfig | ContrastiveRunConfig:
    """The demo's networks in bfloat16, two micro-batches a step, SAM in both stages."""
    config = preset(stage, "demo")
    update = replace(config.update, rho=0.01, clip_norm=1.0)
    return replace(config, update=update, batch_size=CLIPS, micro_batch_size=CLIPS // 2, precision="bf16")


class CopiesThatBlock(TorchDispatchMode):
    """Collects copies from the host that are not asked to go on without waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and isinstance(result, Tensor):
            source, blocks = args[0], not (kwargs or {}).get("non_blocking", False)
            if func is torch.ops.aten.copy_.default:
                source, blocks = args[1], not (len(args) > 2 and args[2])
            if blocks and source.device.type == "cpu" != result.device.type:
                self.found.append(f"{func.name()} of {list(source.shape)}, {source.dtype}")
        return result


@every_stage
def test_a_step_reads_nothing_back_and_no_copy_to_the_device_blocks(stage: Stage) -> None:
    """On tensors without contents: whatever would read a number raises."""
    config, world = config_of(stage), World(0, 1, META)
    with META:
        model = build_model(config)
    updater, objective = build_updater(model, config, world), build_objective(config, world)
    batch = batch_of(ClipSize(64, 10), CLIPS)
    with use_backend("fused"), CopiesThatBlock() as copies:
        inputs = objective.prepare(batch, 0)
        updater.update(0, lambda: objective.backward(model, inputs))
    assert copies.found == []


def test_a_copy_that_blocks_and_a_number_that_is_read_are_noticed() -> None:
    with CopiesThatBlock() as copies:
        torch.arange(3).to(META, non_blocking=True)
        there = torch.arange(3).to(META)
    assert copies.found == ["aten::_to_copy of [3], torch.int64"]
    with pytest.raises(RuntimeError, match="meta"):
        there.sum().item()


@pytest.fixture
def never_waiting() -> Iterator[None]:
    """Leave PyTorch's word about waiting as it was."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: no other device is waited for")
@every_stage
def test_on_a_gpu_no_step_waits(stage: Stage, never_waiting: None) -> None:
    device = torch.device("cuda")
    config, world = config_of(stage), World(0, 1, device)
    model = build_model(config)
    init_weights(model, 0)
    updater, objective = build_updater(model.to(device), config, world), build_objective(config, world)
    assert isinstance(updater, Updater)
    assert choose("adamw", device).path == "fused"
    batches = [noise_batch(CLIPS, 512, seed).pin_memory() for seed in range(4)]

    def step(number: int, batch: AudioTextBatch) -> None:
        inputs = objective.prepare(batch.to(device), number)
        updater.update(number, lambda: objective.backward(model, inputs))

    for number in range(2):  # kernels are compiled and tuned, tables are made
        for batch in batches:
            step(number, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    for number, batch in enumerate(batches, start=2):
        step(number, batch)
    torch.cuda.set_sync_debug_mode("default")
    assert updater.counters == Counters(0, 0)
