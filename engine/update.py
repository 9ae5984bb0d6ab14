"""The parameter update: AdamW under a warm-up + cosine schedule, with sharpness-aware minimisation (SAM).

Reference implementation: per-tensor perturbation, kept copies of the weights, ``torch.optim.AdamW``.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models.tensor_shapes import check_tensors
from .config import UpdateConfig
from .objectives import Report

_ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")


def learning_rate(step: int, steps: int, config: UpdateConfig) -> float:
    """Learning rate of optimiser step ``step`` (from 0) of ``steps``: linear warm-up, then a cosine to the floor."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    cosine_steps = steps - 1 - config.warmup_steps
    progress = (step - config.warmup_steps) / cosine_steps if cosine_steps else 1.0
    swing = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * swing


def gradient_norm(model: nn.Module) -> Tensor:
    """Return the L2 norm of all gradients together, a 0-d float32 tensor on the parameters' device."""
    norms = [torch.linalg.vector_norm(p.grad.float()) for p in model.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))


@contextlib.contextmanager
def perturbed(model: nn.Module, rho: float, norm: Tensor) -> Iterator[None]:
    """Run the body with every weight moved by rho · g / ‖g‖ (SAM's ascent); exactly the old weights come back.

    ``norm`` is ‖g‖ over all parameters and more than 0. The gradients are cleared for the body to fill.
    """
    moved = [p for p in model.parameters() if p.grad is not None]
    saved = [p.detach().clone() for p in moved]
    try:
        with torch.no_grad():
            for parameter in moved:
                assert parameter.grad is not None
                parameter.add_(parameter.grad * (rho / norm))
        model.zero_grad(set_to_none=True)
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(moved, saved, strict=True):
                parameter.copy_(old)


@dataclass(frozen=True)
class Outcome:
    """What an update did: ``gradient_norm`` is of the unperturbed gradient; ``sam_loss`` the loss at SAM's point."""

    learning_rate: float
    gradient_norm: float
    skipped: bool
    gradients: int
    sam_loss: Tensor | None = None


@dataclass
class Counters:
    """Steps whose gradient was not finite: all of the run, and the latest in a row."""

    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass
class Updater:
    """Applies updates to a model; its state is the optimiser's and the counters."""

    model: nn.Module
    config: UpdateConfig
    steps: int
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        """Build the optimiser."""
        c = self.config
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=c.learning_rate,
            betas=(c.beta1, c.beta2),
            eps=c.eps,
            weight_decay=c.weight_decay,
        )

    def update(self, step: int, gradient: Callable[[], Report]) -> tuple[Report, Outcome]:
        """Make optimiser step ``step``: gradient → [perturb → gradient → restore] → AdamW.

        ``gradient`` adds the global batch's gradient to the parameters. A step with a gradient that is not finite
        leaves weights and optimiser as they were and is counted.
        """
        rate = learning_rate(step, self.steps, self.config)
        self.model.zero_grad(set_to_none=True)
        report = gradient()
        norm = gradient_norm(self.model)
        norm_value = float(norm)
        sam_loss, gradients = None, 1
        finite = math.isfinite(norm_value)
        if finite and self.config.rho > 0.0 and norm_value > 0.0:
            with perturbed(self.model, self.config.rho, norm):
                sam_loss, gradients = gradient().losses["loss"], 2
            finite = math.isfinite(float(gradient_norm(self.model)))
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.counters.skipped += not finite
        self.counters.skipped_in_a_row = 0 if finite else self.counters.skipped_in_a_row + 1
        return report, Outcome(rate, norm_value, not finite, gradients, sam_loss)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the optimiser's moments and step counts, one entry a parameter: ``exp_avg.<name>``, …"""
        state = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{key}.{name}"] = value
        return state

    def load_state_tensors(self, state: dict[str, Tensor], source: Path) -> None:
        """Restore what :meth:`state_tensors` returned, for every parameter or (before the first update) none.

        Raises InputError that names a tensor that is missing, unexpected or of another shape.
        """
        if not state:
            return
        parameters = dict(self.model.named_parameters())
        expected = {
            f"{key}.{name}": () if key == "step" else tuple(parameter.shape)
            for name, parameter in parameters.items()
            for key in _ADAMW_STATE
        }
        check_tensors({name: tuple(tensor.shape) for name, tensor in state.items()}, expected, source)
        for name, parameter in parameters.items():
            self.optimizer.state[parameter] = {
                # AdamW keeps its step count on the host.
                key: state[f"{key}.{name}"].to("cpu" if key == "step" else parameter.device)
                for key in _ADAMW_STATE
            }
