"""Whose implementation of an op is timed: ours, its variants, plain PyTorch, plain PyTorch compiled, other people's."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import InputError
from ..kernels.backend import choose, use_backend
from ..kernels.spec import Spec
from ..kernels.specs import SPECS

Provider = Callable[[Spec], Callable[..., Any]]
"""Returns the implementation of an op, to be called with the inputs of a case; raises where there is none."""


def _fused(spec: Spec) -> Callable[..., Any]:
    def fused(**inputs: Any) -> Any:
        with use_backend("fused"):
            return spec.op(**inputs)

    return fused


def _compiled(spec: Spec) -> Callable[..., Any]:
    torch._dynamo.reset()  # what was compiled for another case must not count against the limit of recompilations
    return torch.compile(spec.reference, dynamic=False)


OURS: dict[str, Provider] = {"fused": _fused, "reference": lambda spec: spec.reference, "compile": _compiled}


def provider_names() -> list[str]:
    """Return every provider that some op has."""
    return [*OURS, *_variant_names(), *sorted({name for spec in SPECS for name in spec.rivals})]


def default_providers(spec: Spec, device: torch.device) -> list[str]:
    """Return the providers of ``spec`` timed where none is named: all, on a CPU without interpreted kernels."""
    with use_backend("auto"):
        native = choose(spec.name, device).path == "fused"
    interpreted = () if native or device.type == "cuda" else ("fused", *_variant_names())
    return [name for name in provider_names() if name not in interpreted]


def implementation(name: str, spec: Spec, device: torch.device) -> Callable[..., Any] | None:
    """Return provider ``name``'s implementation of ``spec``, None where it is a rival or variant that has no such op.

    Raises InputError where there is no fused implementation on ``device``.
    """
    variants = spec.variant_specs()
    if name == "fused" or name in variants:
        with use_backend("fused"):
            choice = choose(spec.name, device)
        if choice.implementation is None:
            raise InputError(choice.reason)
    if name in variants:
        return _fused(variants[name])
    return OURS[name](spec) if name in OURS else spec.rivals.get(name)


def _variant_names() -> list[str]:
    return sorted({variant.name for spec in SPECS for variant in spec.variants})


def specialising() -> contextlib.AbstractContextManager[None]:
    """Let ``torch.compile`` specialise on every shape, layout and gradient mode; what it gives up on is an error.

    By default it would go on uncompiled after eight specialisations, and the figure would not be its own.
    """
    return torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True)


def why(error: Exception) -> str:
    """Return in one line why a provider has no time."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, ImportError):
        return f"not installed ({lines[0]})"
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return lines[0] if isinstance(error, InputError) else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")


def check_names(kind: str, asked: Sequence[str], known: Sequence[str]) -> None:
    """Raise InputError where ``asked`` holds a name that is not in ``known``."""
    for name in asked:
        if name not in known:
            raise InputError(f"--{kind} {name!r} is unknown; expected one of: {', '.join(known)}")
