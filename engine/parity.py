"""How far what runs here is from the truth: every op and a whole model, forward and gradients, beside plain PyTorch."""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.batch import AudioTextBatch
from ..data.noise import noise_batch
from ..kernels.accuracy import deviations, map_tensors, named_tensors
from ..kernels.backend import Backend, choices, choose, use_backend
from ..kernels.spec import ErrorBudget
from ..kernels.specs import SPECS
from ..models.audio_mae import AudioMAE
from ..models.audio_text import AudioText
from ..models.config import MAX_TEXT_TOKENS
from .config import (
    ContrastiveDataConfig,
    ContrastiveObjectiveConfig,
    ContrastiveRunConfig,
    MaeObjectiveConfig,
    MaeRunConfig,
    Precision,
)
from .contrastive_captioning import ContrastiveCaptioning
from .distributed import World
from .masked_reconstruction import MaskedReconstruction
from .objective import Objective
from .update_config import UpdateConfig

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MODEL_BUDGET = ErrorBudget(factor=2.0, floor_ulps=2.0)
_GRADIENT_FLOOR = 1e-3
_STEPS = 4


@dataclass(frozen=True)
class Row:
    """One comparison: the tensor of a case of ``what`` that comes nearest to its limit, or is furthest beyond it."""

    what: str
    precision: Precision
    path: str
    tensor: str
    error: float
    reference_error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the error is within its budget; NaN is not."""
        return self.error <= self.limit

    @property
    def nearness(self) -> float:
        """The error in units of the limit; infinite for NaN."""
        if not math.isfinite(self.error) or self.error > self.limit == 0.0:
            return math.inf
        return self.error / self.limit if self.limit else 0.0


def op_rows(backend: Backend, device: torch.device, precisions: tuple[Precision, ...]) -> Iterator[Row]:
    """Compare every op with its reference in float64 on the small cases of its SPEC; one row an op and precision.

    An op that takes no floating tensor of a precision has no row for it.
    """
    for spec in SPECS:
        for precision in precisions:
            dtype = _DTYPES[precision]
            with use_backend(backend):
                path = choose(spec.name, device).path
            rows = [
                Row(spec.name, precision, path, f"{case.name}: {d.tensor}", d.error, d.reference_error, d.limit)
                for case in spec.cases
                if not case.paper and any(t.dtype == dtype for _, t in named_tensors(case.inputs(device, dtype)))
                for d in deviations(spec, case, device, dtype, backend=backend)
            ]
            if rows:
                yield max(rows, key=lambda row: row.nearness)


def model_rows(
    model: AudioMAE | AudioText,
    backend: Backend,
    device: torch.device,
    precisions: tuple[Precision, ...],
    clips: int,
) -> Iterator[Row]:
    """Compare a step's losses and every parameter's gradient with the reference path in float64.

    The step is that of the model's stage on ``clips`` clips of noise, dropout on. Errors of losses are absolute; those
    of a gradient are the L2 norm of the difference, whose floor is also a share of the whole gradient's norm: some
    gradients (key biases) are zero but for rounding. All are root mean squares over a few steps: in a single one the
    rounding errors of a parameter of one number, PyTorch's and others', can be next to nothing by luck.
    """
    steps = [_errors_of_step(model, backend, device, precisions, clips, seed) for seed in range(_STEPS)]
    with use_backend(backend):
        paths = {choice.path for choice in choices(device)}
    path = paths.pop() if len(paths) == 1 else "mixed"
    for precision in precisions:
        dtype = _DTYPES[precision]
        for what in ("losses", "gradients"):
            names = steps[0][precision, what]
            errors = {name: _root_mean_square([step[precision, what][name] for step in steps]) for name in names}
            floor = 0.0
            if what == "gradients":
                floor = _GRADIENT_FLOOR * torch.finfo(dtype).eps * math.hypot(*(size for *_, size in errors.values()))
            rows = [
                Row(
                    f"{what} of a step",
                    precision,
                    path,
                    name,
                    error,
                    reference_error,
                    _MODEL_BUDGET.limit(reference_error, size, dtype) + floor,
                )
                for name, (error, reference_error, size) in errors.items()
            ]
            yield max(rows, key=lambda row: row.nearness)


def format_rows(rows: list[Row]) -> str:
    """Return the comparisons as a table, those beyond their budget marked."""
    lines = [f"{'what':20} {'':5} {'path':10} {'worst tensor':44} {'error':>9} {'PyTorch':>9} {'limit':>9}"]
    for row in rows:
        mark = "" if row.ok else "  BEYOND ITS BUDGET"
        lines.append(
            f"{row.what:20} {row.precision:5} {row.path:10} {row.tensor[-44:]:44} "
            f"{row.error:9.2e} {row.reference_error:9.2e} {row.limit:9.2e}{mark}"
        )
    return "\n".join(lines)


def as_dict(row: Row) -> dict[str, Any]:
    """Return what a JSON file holds of a comparison."""
    return asdict(row) | {"ok": row.ok}


_Errors = dict[str, list[float]]
"""Of each tensor by name: the error, the reference's, the norm of the truth."""


def _errors_of_step(
    model: AudioMAE | AudioText,
    backend: Backend,
    device: torch.device,
    precisions: tuple[Precision, ...],
    clips: int,
    seed: int,
) -> dict[tuple[Precision, str], _Errors]:
    """Return the errors of losses and of gradients, by precision, in the step on the noise of ``seed``."""
    truth = _Step(model, "reference", device, "fp32", clips, seed).run(torch.float64)
    errors: dict[tuple[Precision, str], _Errors] = {}
    for precision in precisions:
        reference = _Step(model, "reference", device, precision, clips, seed).run()
        found = _Step(model, backend, device, precision, clips, seed).run()
        for what in ("losses", "gradients"):
            exact, others = getattr(truth, what), [getattr(outcome, what) for outcome in (found, reference)]
            errors[precision, what] = {
                name: [*(float((other[name].double() - x).norm()) for other in others), float(x.norm())]
                for name, x in exact.items()
            }
    return errors


def _root_mean_square(errors: list[list[float]]) -> list[float]:
    return torch.tensor(errors, dtype=torch.float64).square().mean(0).sqrt().tolist()


@dataclass(frozen=True)
class _Outcome:
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class _Step:
    """One gradient of a model's own objective on the noise of ``seed``."""

    model: AudioMAE | AudioText
    backend: Backend
    device: torch.device
    precision: Precision
    clips: int
    seed: int = 0

    def run(self, dtype: torch.dtype = torch.float32) -> _Outcome:
        """Return losses and gradients with parameters and inputs in ``dtype``."""
        model = copy.deepcopy(self.model).to(self.device)
        model.requires_grad_().zero_grad()
        with use_backend(self.backend):
            objective, batch = self._objective()
            inputs = objective.prepare(batch, 0)
            if dtype == torch.float64:
                model, inputs = model.double(), map_tensors(_double, inputs)
            report = objective.backward(model, inputs)
        zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return _Outcome(report.losses, zeros | gradients)

    def _objective(self) -> tuple[Objective, AudioTextBatch]:
        world = World(0, 1, self.device)
        settings: dict[str, Any] = {
            "model": self.model.config,
            "update": UpdateConfig(warmup_steps=0),
            "micro_batch_size": max(self.clips // 2, 1),
            "precision": self.precision,
        }
        if isinstance(self.model, AudioMAE):
            mae = MaskedReconstruction(MaeObjectiveConfig(), MaeRunConfig(**settings), world)
            return mae, noise_batch(self.clips, vocab_size=100, seed=self.seed).to(self.device)
        text = self.model.config.text
        data = ContrastiveDataConfig(max_text_tokens=min(MAX_TEXT_TOKENS, text.max_positions))
        run = ContrastiveRunConfig(**settings, data=data)
        batch = noise_batch(self.clips, text.vocab_size, self.seed, max_tokens=text.max_positions)
        return ContrastiveCaptioning(ContrastiveObjectiveConfig(), run, world, text.dropout), batch.to(self.device)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
