"""Which implementation makes the updates of a run."""

import torch
from torch import nn

from .config import RunConfig
from .distributed import World
from .update import Updater
from .update_per_tensor import PerTensorUpdater

AnyUpdater = Updater | PerTensorUpdater


def build_updater(model: nn.Module, config: RunConfig, world: World) -> AnyUpdater:
    """Build the updater of a run for ``model``, which lies on the world's device, its weights already drawn."""
    if config.update.implementation == "per_tensor":
        return PerTensorUpdater(model, config.update, config.steps, world=world)
    linear_dtype = torch.bfloat16 if config.precision == "bf16" else None
    return Updater(model, config.update, config.steps, linear_dtype=linear_dtype, world=world)
