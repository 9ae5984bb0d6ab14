"""How far an implementation is from the truth, measured beside plain PyTorch's own error in the same dtype."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .backend import Backend, use_backend
from .spec import Case, ErrorBudget, Inputs, Spec

_PERIOD = 1_048_573  # drawing hundreds of millions of numbers on the host takes seconds


@dataclass(frozen=True)
class Deviation:
    """Largest error of one output or gradient against float64; of integers, how many differ."""

    tensor: str
    error: float
    reference_error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the budget; NaN is not."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Truth:
    """What an op should return, and its gradients, on given inputs: in float64, and by plain PyTorch in the dtype."""

    spec: Spec
    dtype: torch.dtype
    exact: Mapping[str, Tensor] = field(repr=False)
    reference: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, spec: Spec, inputs: Inputs, dtype: torch.dtype) -> "Truth":
        """Run the reference of ``spec`` on ``inputs``, whose floating tensors are mostly ``dtype``, and in float64."""
        exact = _results(spec.exact or spec.reference, map_tensors(_to_float64, inputs))
        return cls(spec, dtype, exact, _results(spec.reference, copy_inputs(inputs)))

    def deviations(self, implementation: Callable[..., Any], inputs: Inputs) -> list[Deviation]:
        """Run ``implementation`` on a copy of the same ``inputs`` and measure every output and gradient."""
        found = _results(implementation, copy_inputs(inputs))
        return [
            deviation(name, found.get(name), self.reference[name], exact, self.spec.budget, self.dtype)
            for name, exact in self.exact.items()
        ]


def deviations(
    spec: Spec, case: Case, device: torch.device, dtype: torch.dtype, *, backend: Backend = "auto", seed: int = 0
) -> list[Deviation]:
    """Run an op forward and backward on ``case`` under ``backend`` and measure every output and gradient.

    Raises InputError where ``backend`` has no implementation on ``device``.
    """
    inputs = case.inputs(device, dtype, seed)
    truth = Truth.of(spec, inputs, dtype)
    with use_backend(backend):
        return truth.deviations(spec.op, inputs)


def copy_inputs(inputs: Inputs) -> Inputs:
    """Return the same inputs in memory of their own; what asks for a gradient is a leaf again."""
    return map_tensors(lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad), inputs)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``function`` to every tensor in nested mappings, tuples, lists and dataclasses."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {name: map_tensors(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(map_tensors(function, value) for value in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        values = {field.name: map_tensors(function, getattr(tree, field.name)) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **values)
    return tree


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested mappings, tuples, lists and dataclasses with its dotted name."""
    if isinstance(tree, Tensor):
        yield name, tree
        return
    children: list[tuple[str, Any]] = []
    if isinstance(tree, Mapping):
        children = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, tuple | list):
        children = [(str(number), value) for number, value in enumerate(tree)]
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        children = [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    for key, value in children:
        yield from named_tensors(value, f"{name}.{key}" if name else key)


def random_cotangent(output: Tensor, seed: int = 0) -> Tensor:
    """Return normal random numbers like ``output``, the same on every device; they repeat with a long prime period."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(min(output.numel(), _PERIOD), generator=generator, dtype=torch.float64).to(output)
    repeats = -(-output.numel() // _PERIOD)
    return numbers.repeat(repeats)[: output.numel()].view(output.shape)


def _to_float64(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()  # an op may change its arguments
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def _results(function: Callable[..., Any], inputs: Inputs) -> dict[str, Tensor]:
    """Return outputs and gradients by name; the gradient of a fixed random projection of the outputs."""
    outputs = dict(named_tensors(function(**inputs), "output"))
    results = {name: output.detach() for name, output in outputs.items()}
    leaves = {name: leaf for name, leaf in named_tensors(inputs) if leaf.requires_grad}
    differentiable = [output for output in outputs.values() if output.requires_grad]
    if leaves and differentiable:
        cotangents = [random_cotangent(output, seed) for seed, output in enumerate(differentiable)]
        gradients = torch.autograd.grad(differentiable, list(leaves.values()), cotangents, allow_unused=True)
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            results[f"d {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return results


def deviation(
    name: str, found: Tensor | None, reference: Tensor, truth: Tensor, budget: ErrorBudget, dtype: torch.dtype
) -> Deviation:
    """Measure ``found``, called ``name``, against ``truth``, beside plain PyTorch's ``reference`` in ``dtype``."""
    if found is None or found.shape != truth.shape:
        return Deviation(name, math.inf, 0.0, 0.0)
    if not truth.is_floating_point():
        return Deviation(name, float((found != truth).sum()), float((reference != truth).sum()), 0.0)
    if not truth.numel():
        return Deviation(name, 0.0, 0.0, 0.0)
    error, reference_error = (float((x.double() - truth).abs().max()) for x in (found, reference))
    return Deviation(name, error, reference_error, budget.limit(reference_error, float(truth.abs().max()), dtype))
