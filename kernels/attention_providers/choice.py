"""Which provider computes attention: explicit, in a fixed order, and never changed silently.

From strongest to weakest: the innermost :func:`use_provider`, the environment variable ``CACOPHONY_ATTENTION``, the
order below. A provider that was asked for by name and cannot serve is an error with its reason; in the order, the next
one is taken. cuDNN is in no order: its backward has given NaN on H100 and H200 (PyTorch issue 196678).
"""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ...errors import InputError
from .. import backend
from .flash2 import Flash2
from .flash3 import Flash3
from .own_triton import OwnTriton
from .provider import Problem, Provider
from .torch_flash import TorchFlash
from .xformers_flash import XformersFlash

ENVIRONMENT_VARIABLE = "CACOPHONY_ATTENTION"
AUTO = "auto"
REFERENCE = "reference"
"""The name under which plain PyTorch can be asked for, and which is chosen where no provider can serve."""

PROVIDERS: dict[str, Provider] = {
    provider.name: provider for provider in (Flash3(), Flash2(), TorchFlash(), OwnTriton(), XformersFlash())
}

ORDER: dict[int, tuple[str, ...]] = {
    96: ("flash3", "flash2", "torch", "xformers", "triton"),  # audio; our kernels pad 96 to 128
    64: ("flash3", "flash2", "torch", "triton", "xformers"),  # text
}
"""Who is asked first, by head dim, by what is published about them: not measured here yet."""

ANY_HEAD_DIM = ORDER[96]

_log = logging.getLogger(__name__)
# One for the process, as the backend is.
_asked: str | None = None


def provider_asked() -> str | None:
    """Return the provider asked for by name now, if any; raises InputError where the environment holds another word."""
    if _asked is not None:
        return None if _asked == AUTO else _asked
    word = os.environ.get(ENVIRONMENT_VARIABLE) or AUTO
    _check_name(f"{ENVIRONMENT_VARIABLE}={word!r}", word)
    return None if word == AUTO else word


@contextlib.contextmanager
def use_provider(name: str) -> Iterator[None]:
    """Run attention of the body through provider ``name``, ``reference`` or, ``auto``, the first in the order."""
    _check_name(f"attention provider {name!r}", name)
    global _asked
    before, _asked = _asked, name
    try:
        yield
    finally:
        _asked = before


def choose_provider(
    device: torch.device, dtype: torch.dtype, head_dim: int, causal: bool, dropout: bool, insist: bool
) -> str:
    """Return the provider's name, or ``reference`` where none can serve or it was asked for.

    ``insist`` makes "none can serve" an error, ValueError with everyone's reason. Raises InputError where a provider
    was asked for by name and cannot serve.
    """
    problem = _problem(device, dtype, head_dim, causal, dropout)
    chosen = choose(problem, provider_asked())
    if insist and chosen.provider == REFERENCE and chosen.refusals:
        raise ValueError(f"attention: query with {problem} is taken by no provider: {'; '.join(chosen.refusals)}")
    return chosen.provider


# Libraries are imported to see whether they work, which cannot be traced: the choice is a constant of a compiled graph.
# This is all that torch.compiler.assume_constant_result does, once it has imported the compiler, which takes seconds.
choose_provider._dynamo_marked_constant = True  # type: ignore[attr-defined]


class ProviderChoice(NamedTuple):
    """Who serves a problem, by name, and why those before it in the order cannot."""

    provider: str
    refusals: tuple[str, ...] = ()


@functools.cache
def choose(problem: Problem, asked: str | None) -> ProviderChoice:
    """Choose who serves ``problem``, once; raises InputError where ``asked`` cannot."""
    if asked == REFERENCE:
        return ProviderChoice(REFERENCE)
    refusals: list[str] = []
    for name in (asked,) if asked else ORDER.get(problem.head_dim, ANY_HEAD_DIM):
        provider = PROVIDERS[name]
        reason = provider.refusal(problem) or provider.unavailable()
        if reason is None:
            _log.info("attention with %s runs on %s", problem, name)
            return ProviderChoice(name, tuple(refusals))
        if asked:
            remedy = f"take another, or {AUTO} for the first that can"
            raise InputError(f"attention provider {asked} cannot serve {problem}: it {reason}; {remedy}")
        refusals.append(f"{name}: it {reason}")
    _log.warning("attention with %s runs in plain PyTorch: %s", problem, "; ".join(refusals))
    return ProviderChoice(REFERENCE, tuple(refusals))


def report(device: torch.device) -> list[str]:
    """Say in lines who serves attention of audio and text in bfloat16 on ``device``, and why others do not."""
    op = backend.choose("attention", device)
    if op.path != "fused":
        return [f"{op.path}: {op.reason}"]
    lines = []
    for purpose, head_dim, causal, dropout in (
        ("audio", 96, False, False),
        ("text", 64, True, False),
        ("text with dropout", 64, True, True),
    ):
        problem = _problem(device, torch.bfloat16, head_dim, causal, dropout)
        try:
            chosen = choose(problem, provider_asked())
        except InputError as error:
            lines += [f"{purpose}, head dim {head_dim}: refused", f"  {error}"]
            continue
        lines.append(f"{purpose}, head dim {head_dim}: {chosen.provider}")
        lines.extend(f"  not {refusal}" for refusal in chosen.refusals)
    return [*lines, f"padded tokens: {REFERENCE}"]


def _problem(device: torch.device, dtype: torch.dtype, head_dim: int, causal: bool, dropout: bool) -> Problem:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return Problem(device.type, capability, dtype, head_dim, causal, dropout)


def _check_name(what: str, name: str) -> None:
    if name not in (AUTO, *PROVIDERS, REFERENCE):
        raise InputError(f"{what} is unknown; expected {AUTO}, {', '.join(PROVIDERS)} or {REFERENCE}")
