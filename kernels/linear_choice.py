"""Who multiplies in linear layers, by what goes with the product: a table, and never changed silently.

``cublas`` is cuBLAS through torch, with what it has no epilogue for in passes of their own; ``triton`` is
:mod:`.linear_triton`, with all of it in one. From strongest to weakest: the innermost :func:`use_linear_provider`, the
environment variable ``CACOPHONY_LINEAR``, the table. Where the backend of ``linear`` is the reference, plain PyTorch
multiplies whatever they say.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, get_args

import torch

from ..errors import InputError
from . import backend
from .linear_tiles import DeviceClass, ShapeClass, device_class, shape_class
from .spec import Variant

LinearProvider = Literal["cublas", "triton"]
LinearStep = Literal["bias", "activation", "residual", "dgrad", "dgrad_activation", "dgrad_residual"]
"""What goes with a product: forward, x Wᵀ + b alone, activated, or added to a residual; backward, d_y W alone, with the
derivative, value and sums of the activation below, or added to a gradient that comes another way."""

ENVIRONMENT_VARIABLE = "CACOPHONY_LINEAR"
AUTO = "auto"

_CUBLAS: dict[ShapeClass, LinearProvider] = {"wide": "cublas", "square": "cublas", "deep": "cublas"}

TABLE: dict[DeviceClass, dict[LinearStep, dict[ShapeClass, LinearProvider]]] = {
    "sm_80": {
        "bias": _CUBLAS,
        "activation": _CUBLAS,
        "residual": _CUBLAS,
        "dgrad": _CUBLAS,
        "dgrad_activation": _CUBLAS,
        "dgrad_residual": _CUBLAS,
    },
    "sm_90": {
        "bias": _CUBLAS,
        "activation": _CUBLAS,
        "residual": _CUBLAS,
        "dgrad": _CUBLAS,
        "dgrad_activation": _CUBLAS,
        "dgrad_residual": _CUBLAS,
    },
    "other": dict.fromkeys(get_args(LinearStep), _CUBLAS),
}
"""cuBLAS until ``cacophony bench kernels --op linear mlp`` has shown on a GPU where our kernels are faster."""

_log = logging.getLogger(__name__)
# One for the process, as the backend is.
_asked: str | None = None


def linear_provider_asked() -> LinearProvider | None:
    """Return the provider asked for by name now, if any; raises InputError where the environment holds another word."""
    if _asked is not None:
        return _named(f"linear provider {_asked!r}", _asked)
    word = os.environ.get(ENVIRONMENT_VARIABLE) or AUTO
    return _named(f"{ENVIRONMENT_VARIABLE}={word!r}", word)


def linear_variants(op: Callable[..., Any]) -> tuple[Variant, ...]:
    """Return ``op`` with each provider asked for."""

    def asking(name: LinearProvider) -> Callable[..., Any]:
        def asked(**inputs: Any) -> Any:
            with use_linear_provider(name):
                return op(**inputs)

        return asked

    return tuple(Variant(name, asking(name), name == "triton") for name in get_args(LinearProvider))


@contextlib.contextmanager
def use_linear_provider(name: str) -> Iterator[None]:
    """Let provider ``name`` multiply in the body, in every thread, or, ``auto``, whom the table says."""
    _named(f"linear provider {name!r}", name)
    global _asked
    before, _asked = _asked, name
    try:
        yield
    finally:
        _asked = before


def choose_linear(
    step: LinearStep, device: torch.device, inside: int, width: int, asked: LinearProvider | None
) -> LinearProvider:
    """Return who computes ``step`` where a fused backend runs: sums of ``inside`` terms in ``width`` columns.

    ``asked`` is who was asked for when a forward pass ran; None means now.
    """
    chosen = asked or linear_provider_asked() or TABLE[device_class(device)][step][shape_class(inside, width)]
    _say(step, device, inside, width, chosen)
    return chosen


# As of the attention providers: a constant of a compiled graph. Who was asked for is traced, and a graph guarded by it.
choose_linear._dynamo_marked_constant = True  # type: ignore[attr-defined]


def linear_report(device: torch.device) -> list[str]:
    """Say in lines who multiplies on ``device``, step by step."""
    op = backend.choose("linear", device)
    if op.path != "fused":
        return [f"{op.path}: {op.reason}"]
    asked = linear_provider_asked()
    if asked:
        return [f"{asked}, which was asked for"]
    table = TABLE[device_class(device)]
    return [f"{step:18}{', '.join(f'{shape} {name}' for shape, name in row.items())}" for step, row in table.items()]


@cache
def _say(step: LinearStep, device: torch.device, inside: int, width: int, chosen: LinearProvider) -> None:
    """Log a choice when it is first made."""
    _log.info("linear %s of %d terms in %d columns on %s runs on %s", step, inside, width, device, chosen)


def _named(what: str, word: str) -> LinearProvider | None:
    for provider in get_args(LinearProvider):
        if word == provider:
            return provider
    if word == AUTO:
        return None
    raise InputError(f"{what} is unknown; expected {AUTO}, {' or '.join(get_args(LinearProvider))}")
