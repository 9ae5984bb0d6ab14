"""An optimiser step on noise, ready to be timed: network, objective and update of a stage, computed in one way."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from ..data.noise import noise_batch
from ..engine.build import build_model, build_objective, build_updater
from ..engine.config import (
    ContrastiveObjectiveConfig,
    ContrastiveRunConfig,
    MaeObjectiveConfig,
    MaeRunConfig,
    Precision,
    Stage,
)
from ..engine.distributed import World
from ..engine.phases import PREPARE
from ..engine.update_config import UpdateConfig
from ..errors import InputError
from ..kernels.attention_sdpa import attention_sdpa
from ..kernels.backend import choices, use_backend, use_rival
from ..kernels.layout import LayoutName
from ..kernels.spans import span
from ..models.config import AUDIO_MAE_SIZES, AUDIO_TEXT_SIZES
from ..models.layers import init_weights
from .providers import specialising

StepProvider = Literal["reference", "sdpa", "compile", "fused"]
"""Plain PyTorch as specified, attention weights and all; the same with PyTorch's own attention, which writes none; that
through ``torch.compile``; and the fused ops wherever the device has one."""


@dataclass(frozen=True)
class Variant:
    """One way to compute a step."""

    provider: StepProvider
    layout: LayoutName


@dataclass(frozen=True)
class StepWork:
    """What a step did: valid tokens and model FLOPs, all gradients together."""

    valid_tokens: int
    model_flops: int


def training_step(
    stage: Stage,
    size: str,
    clips: int,
    precision: Precision,
    variant: Variant,
    device: torch.device,
    *,
    must_fuse: bool = True,
) -> Callable[[], StepWork]:
    """Return a function that makes one optimiser step on ``clips`` clips in one micro-batch; stage 2 with SAM.

    ``size`` names the networks (:mod:`cacophony.models.config`). Raises InputError where the variant is the fused one
    and no op is fused on ``device``; unless it need not, and blocks by hand and the arena are all that differs there.
    """
    if must_fuse and variant.provider == "fused" and not fused_ops(device):
        raise InputError(f"no op has a fused implementation on {device.type}")
    config = _config(stage, size, clips, precision, variant)
    world = World(0, 1, device)
    model, objective = build_model(config), build_objective(config, world)
    init_weights(model, config.seed)
    updater = build_updater(model.to(device), config, world)
    if variant.provider == "compile":
        for network in model.children():
            network.compile()
    vocab_size = config.model.text.vocab_size if isinstance(config, ContrastiveRunConfig) else 100
    batch = noise_batch(clips, vocab_size).to(device)

    def step() -> StepWork:
        with ops_of(variant.provider), specialising():
            with span(PREPARE):
                inputs = objective.prepare(batch, 0)
            _, outcome = updater.update(0, lambda: objective.backward(model, inputs))
        return StepWork(outcome.valid_tokens, outcome.model_flops)

    return step


def fused_ops(device: torch.device) -> list[str]:
    """Return the ops that the fused variant fuses on ``device``."""
    with ops_of("fused"):
        return [choice.op for choice in choices(device) if choice.path == "fused"]


@contextlib.contextmanager
def ops_of(provider: StepProvider) -> Iterator[None]:
    """Run the body on the ops of a provider."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_backend("auto" if provider == "fused" else "reference"))
        if provider in ("sdpa", "compile"):
            stack.enter_context(use_rival("attention", attention_sdpa))
        yield


def _config(
    stage: Stage, size: str, clips: int, precision: Precision, variant: Variant
) -> MaeRunConfig | ContrastiveRunConfig:
    # The others are what PyTorch makes of them.
    blocks = "by_hand" if variant.provider == "fused" else "autograd"
    implementation = "arena" if variant.provider == "fused" else "per_tensor"
    if stage == "mae":
        return MaeRunConfig(
            model=AUDIO_MAE_SIZES[size],
            update=UpdateConfig(warmup_steps=0, implementation=implementation),
            batch_size=clips,
            micro_batch_size=clips,
            precision=precision,
            layout=variant.layout,
            objective=MaeObjectiveConfig(blocks=blocks),
        )
    return ContrastiveRunConfig(
        model=AUDIO_TEXT_SIZES[size],
        update=UpdateConfig(warmup_steps=0, rho=0.075, implementation=implementation),
        batch_size=clips,
        micro_batch_size=clips,
        precision=precision,
        layout=variant.layout,
        objective=ContrastiveObjectiveConfig(blocks=blocks),
    )
