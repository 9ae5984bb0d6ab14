"""The ways to make stage 2's whole update, and the configuration of each: what is planned for the memory there is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..data.batch import AudioTextBatch
from ..engine.config import Blocks, ContrastiveRunConfig, Precision
from ..engine.gpus import GIB, GPUS, Gpu, gpu_named, gpu_of
from ..engine.plan import Machine, Planner
from ..engine.presets import preset
from ..engine.step_memory import ClipSize
from ..errors import InputError
from ..kernels.choose_patches import keep_at_most
from ..kernels.layout import LayoutName
from ..kernels.log_mel import FREQ_PATCHES, num_patches
from ..models.by_hand import Stash
from .training_step import StepProvider

UpdateProvider = Literal["fused", "gradcache", "gradcache packed", "compile"]
Lengths = Literal["realistic", "full"]


@dataclass(frozen=True)
class Way:
    """One way to compute an update."""

    ops: StepProvider
    layout: LayoutName
    blocks: Blocks
    implementation: Literal["arena", "per_tensor"]
    dropout: float
    """In the check of its gradients: 0 where the attention draws masks of its own."""


WAYS: dict[UpdateProvider, Way] = {
    "fused": Way("fused", "packed", "by_hand", "arena", 0.1),
    "gradcache": Way("sdpa", "padded", "autograd", "per_tensor", 0.0),
    "gradcache packed": Way("sdpa", "packed", "autograd", "per_tensor", 0.0),
    "compile": Way("compile", "padded", "autograd", "per_tensor", 0.0),
}
"""Ours on flat buffers; what plain PyTorch makes of it (autocast, scaled_dot_product_attention, SAM and AdamW tensor by
tensor, embeddings computed twice as GradCache does) on tokens padded to the longest of a micro-batch, on packed ones,
and compiled."""

MEMORY_LIMIT = GPUS["h100-80gb"].memory_bytes
"""A plan takes no more than a process finds on a card of 80 GiB, on a larger one either."""

_SHARES_OF_MEMORY = (1.0, 0.9, 0.8)


def run_config(
    name: str, provider: UpdateProvider, precision: Precision, clips: int, micro_batch_size: int, stash: Stash = 0
) -> ContrastiveRunConfig:
    """Return stage 2's preset ``name`` as ``provider`` computes it."""
    way, run = WAYS[provider], preset("contrastive", name)
    assert isinstance(run, ContrastiveRunConfig)
    return replace(
        run,
        update=replace(run.update, warmup_steps=0, implementation=way.implementation),
        objective=replace(run.objective, stash=stash, blocks=way.blocks),
        batch_size=clips,
        micro_batch_size=micro_batch_size,
        precision=precision,
        layout=way.layout,
    )


def candidates(
    config: ContrastiveRunConfig, provider: UpdateProvider, batch: AudioTextBatch, device: torch.device
) -> Iterator[ContrastiveRunConfig]:
    """Give configurations that take less and less memory, for where one is out of it.

    Ours has the micro-batch and stash that are planned for clips of the batch's mean size; the others' micro-batches
    are halved. Raises InputError where ``device`` is no GPU or no plan fits.
    """
    if provider != "fused":
        for halvings in range(3):
            if config.micro_batch_size >> halvings:
                yield replace(config, micro_batch_size=config.micro_batch_size >> halvings)
        return
    if device.type != "cuda":
        raise InputError(f"ours is planned for the memory of a GPU, and this is {device.type}")
    total = torch.cuda.get_device_properties(device).total_memory
    yield from planned(config, batch, gpu_of(device) or gpu_named(f"{total / GIB:.1f} GiB"))


def planned(config: ContrastiveRunConfig, batch: AudioTextBatch, gpu: Gpu) -> Iterator[ContrastiveRunConfig]:
    """Give ``config`` with micro-batch and stash as planned for ``gpu`` or 80 GiB, then for 9 and 8 tenths of that."""
    memory = min(gpu.memory_bytes, MEMORY_LIMIT)
    planner = Planner(config, Machine(gpu=gpu, gpus=1, clip=mean_clip(config, batch)))
    for share in _SHARES_OF_MEMORY:
        planner.machine = replace(planner.machine, gpu=replace(gpu, memory_bytes=int(share * memory)))
        plan = planner.best()
        if plan is None and share < 1.0:
            return
        if plan is None:
            raise InputError(f"no plan for {batch.num_clips} clips fits {share * memory / GIB:.0f} GiB")
        objective = replace(config.objective, stash=plan.config.objective.stash)
        yield replace(config, micro_batch_size=plan.config.micro_batch_size, objective=objective)


def mean_clip(config: ContrastiveRunConfig, batch: AudioTextBatch) -> ClipSize:
    """Return the mean clip of a batch, rounded up: the patches that are seen of it, and caption tokens."""
    patches = keep_at_most(num_patches(batch.wave_lengths), config.objective.max_patches).double().mean()
    tokens = batch.token_lengths.double().mean()
    return ClipSize(math.ceil(float(patches) / FREQ_PATCHES) * FREQ_PATCHES, math.ceil(float(tokens)))
