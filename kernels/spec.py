"""What an op promises: inputs at the paper's and at small odd shapes, compulsory work, error budget, rivals.

Tests, benches, the compile gate and ``cacophony parity`` iterate over the specs; an op's file ends with its ``SPEC``.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

Inputs = Mapping[str, Any]
"""Keyword arguments of an op's public function: tensors, layouts, numbers."""


class MakeInputs(Protocol):
    """Makes the inputs of a case; tensors that have a gradient ask for it (``requires_grad``)."""

    def __call__(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Draw on the host from ``generator``, so that every device sees the same numbers."""
        ...


def draw_normal(shape: Sequence[int], generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Draw a leaf that asks for its gradient from N(0, 1); on ``meta`` nothing is drawn, however large it is."""
    if device.type == "meta":
        return torch.empty(shape, device=device, dtype=dtype, requires_grad=True)
    return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()


@dataclass(frozen=True)
class Case:
    """Inputs of one shape. ``paper`` cases have the paper's, for benches and the compile gate; others are small."""

    name: str
    make: MakeInputs = field(repr=False)
    paper: bool = False

    def inputs(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Inputs:
        """Return the inputs on ``device``, floating tensors in ``dtype``; the same ``seed`` gives the same numbers."""
        return self.make(torch.Generator().manual_seed(seed), device, dtype)


@dataclass(frozen=True)
class Work:
    """What a call cannot do without: bytes moved between chip and memory, floating-point operations."""

    bytes: int
    flops: int = 0


@dataclass(frozen=True)
class ErrorBudget:
    """The error allowed an implementation: ``factor`` times plain PyTorch's in that dtype, plus a floor.

    Both errors are the largest over a tensor, against float64; the floor is ``floor_ulps`` units in the last place of
    the dtype at the truth's largest magnitude, for cases in which PyTorch happens to be exact.
    """

    factor: float = 2.0
    floor_ulps: float = 2.0

    def limit(self, reference_error: float, largest: float, dtype: torch.dtype) -> float:
        """Return the largest error allowed beside a reference's error and the truth's ``largest`` magnitude."""
        return self.factor * reference_error + self.floor_ulps * torch.finfo(dtype).eps * largest


@dataclass(frozen=True)
class Variant:
    """One of several ways in which an op can run fused, asked for by ``name``."""

    name: str
    op: Callable[..., Any] = field(repr=False)
    """Called as the SPEC's."""
    tensor_cores: bool = False
    """As the SPEC's."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """An op's promises; ``op`` is the public function, ``reference`` the plain PyTorch one with the same arguments."""

    name: str
    op: Callable[..., Any] = field(repr=False)
    reference: Callable[..., Any] = field(repr=False)
    cases: tuple[Case, ...]
    forward: Callable[[Inputs], Work] = field(repr=False)
    backward: Callable[[Inputs], Work] | None = field(repr=False, default=None)
    budget: ErrorBudget = ErrorBudget()
    tensor_cores: bool = False
    """Whether kernels multiply matrices. The compile gate then looks for the tensor cores' instruction, and tests in
    Triton's interpreter leave bfloat16 out, whose products it gets wrong."""
    sizes_from_host: bool = False
    """Whether the op takes sizes from numbers in host tensors, to prepare a step's inputs: its launches can be traced
    and it never waits for the device, but the public function cannot be inside ``torch.compile(fullgraph=True)``."""
    variants: tuple[Variant, ...] = ()
    """Our own choices, between which a table decides for ``op``: tested, compiled and timed as it is."""
    exact: Callable[..., Any] | None = field(repr=False, default=None)
    """Computes the truth in float64 where the reference would not, although every floating input is float64: an op of
    integers. Called as ``op``."""
    rivals: Mapping[str, Callable[..., Any]] = field(repr=False, default_factory=dict)
    """Other people's implementations by name, called as ``op``; each imports its package when called."""
    rivals_checked_on: Callable[[Inputs], Inputs] | None = field(repr=False, default=None)
    """Makes of a case's inputs those on which a rival's result is checked; without it, on the case's own. For ops that
    draw random numbers: a rival draws others, and can be right only where nothing is drawn."""

    def case(self, name: str) -> Case:
        """Return the case called ``name``."""
        return next(case for case in self.cases if case.name == name)

    def variant_specs(self) -> dict[str, "Spec"]:
        """Return this SPEC for each of its variants."""
        return {
            variant.name: dataclasses.replace(self, op=variant.op, tensor_cores=variant.tensor_cores, variants=())
            for variant in self.variants
        }
