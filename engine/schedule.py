"""The learning rate of every step: a warm-up, then a cosine."""

import math

import torch
from torch import Tensor

from .update_config import UpdateConfig


def learning_rate(step: int, steps: int, config: UpdateConfig) -> float:
    """Learning rate of optimiser step ``step`` (from 0) of ``steps``: linear warm-up, then a cosine to the floor."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    cosine_steps = steps - 1 - config.warmup_steps
    progress = (step - config.warmup_steps) / cosine_steps if cosine_steps else 1.0
    swing = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * swing


def schedule_table(steps: int, config: UpdateConfig) -> Tensor:
    """Return what :func:`~.kernels.adamw.adamw_` reads of each step, float64 ``[steps, 3]`` on the host.

    Row s: the learning rate of step s, and 1 - beta1ⁿ and sqrt(1 - beta2ⁿ) for n = s + 1 steps applied.
    """
    rates = torch.tensor([learning_rate(step, steps, config) for step in range(steps)], dtype=torch.float64)
    applied = torch.arange(1, steps + 1, dtype=torch.float64)
    return torch.stack((rates, 1 - config.beta1**applied, (1 - config.beta2**applied).sqrt()), dim=1)
