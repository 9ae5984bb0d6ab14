"""What a run says before its first step."""

import os

import torch
from torch import nn

from ..kernels import backend
from .build import Config
from .distributed import World
from .gpus import gpu_of
from .plan import fit_note
from .telemetry import RunLog


def introduce(log: RunLog, config: Config, model: nn.Module, world: World, notes: list[str], first_step: int) -> None:
    """Log size, devices, each op's path, whether it fits the GPU, ``notes``, and where a run continues."""
    parameters = sum(p.numel() for p in model.parameters())
    log.say(
        f"{parameters / 1e6:.2f} M parameters, batch {config.batch_size} on {world.size} x {world.device}, "
        f"{config.precision}, {config.layout} layout, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    paths = backend.choices(world.device)
    for path in ("fused", "reference"):
        names = [choice.op for choice in paths if choice.path == path]
        if names:
            log.say(f"{path} path: {', '.join(names)}")
    gpu = gpu_of(world.device)
    if gpu is not None and config.update.implementation == "arena" and config.backend != "reference":
        log.say(fit_note(config, gpu, world.size))
    for note in filter(None, notes):
        log.say(note)
    if first_step:
        log.say(f"continuing from step {first_step}")
