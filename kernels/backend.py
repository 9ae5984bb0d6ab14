"""Which implementation of an op runs: chosen in one place, by name, and never changed silently.

``auto`` takes the fused implementation where the tensor's device has one and the reference elsewhere; ``fused`` and
``reference`` insist. The choice is, from strongest to weakest: the innermost :func:`use_backend` that means the op, the
environment variable ``CACOPHONY_BACKEND``, ``auto``. On a CPU ``fused`` runs the CUDA kernels in Triton's interpreter
where that was asked for (``TRITON_INTERPRET=1``): slow, for tests. On ``meta`` tensors it computes the shapes the CUDA
kernels return.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch

from ..errors import InputError
from .triton_runtime import HAS_TRITON, INTERPRETING

Backend = Literal["auto", "fused", "reference"]

ENVIRONMENT_VARIABLE = "CACOPHONY_BACKEND"


class OnDevice(Protocol):
    """Something that lies on one device."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        ...


@dataclass(frozen=True)
class Op:
    """An op's implementations: the reference, and the fused ones by device type (``"cuda"``, ``"cpu"``)."""

    name: str
    reference: Callable[..., Any]
    fused: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    needs_triton: bool = True
    absent: Mapping[str, str] = field(default_factory=dict)
    """Why a device type has no fused implementation here, where that is not how the op is made."""


@dataclass(frozen=True)
class Choice:
    """What runs for an op on a device, and why; ``implementation`` is None where the asked backend has none."""

    op: str
    path: Literal["fused", "reference", "rival", "refused"]
    reason: str
    implementation: Callable[..., Any] | None = field(repr=False, default=None)


_ops: dict[str, Op] = {}
# One for the process, not a ContextVar: autograd calls ops again from threads of its own, and torch.compile can trace
# and guard a global.
_asked: dict[str, Backend] = {}
_EVERY_OP = "*"
_rivals: dict[str, Callable[..., Any]] = {}


def register(
    name: str,
    *,
    reference: Callable[..., Any],
    fused: Mapping[str, Callable[..., Any]] | None = None,
    needs_triton: bool = True,
    absent: Mapping[str, str] | None = None,
) -> Callable[..., Any]:
    """Declare an op once, at import of its file; returns the function that dispatches calls of it.

    ``fused`` implementations are kernels in Triton unless ``needs_triton`` is False; ``absent`` says why there is none
    in this installation for a device type. The returned dispatcher looks at the device of its first argument, a tensor
    or patches.
    """
    if name in _ops:
        raise RuntimeError(f"op {name!r} is registered twice: is the package imported under two names?")
    _ops[name] = Op(name, reference, dict(fused or {}), needs_triton, dict(absent or {}))

    def dispatch(first: OnDevice, *args: Any, **kwargs: Any) -> Any:
        choice = choose(name, first.device)
        if choice.implementation is None:
            raise InputError(f"{choice.op}: {choice.reason}")
        return choice.implementation(first, *args, **kwargs)

    return dispatch


def current_backend(op: str = _EVERY_OP) -> Backend:
    """Return the backend asked for ``op``, or for the ops nobody named, now.

    Raises InputError where the environment variable holds another word.
    """
    for name in (op, _EVERY_OP):
        if name in _asked:
            return _asked[name]
    word = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    for backend in get_args(Backend):
        if word == backend:
            return backend
    raise InputError(f"{ENVIRONMENT_VARIABLE}={word!r} is not a backend; expected auto, fused or reference")


@contextlib.contextmanager
def use_backend(backend: Backend, ops: Collection[str] | None = None) -> Iterator[None]:
    """Run the body with ``backend`` in every thread, whatever the environment says.

    With ``ops`` only these are meant and the others keep what they had: ``fused`` for the ops that have a fused
    implementation, say. Raises InputError for another word and ValueError for an op that is not registered.
    """
    if backend not in get_args(Backend):
        raise InputError(f"backend {backend!r} is unknown; expected auto, fused or reference")
    if unknown := sorted(set(ops or ()) - _ops.keys()):
        raise ValueError(f"use_backend: ops holds {unknown[0]!r}, expected some of {', '.join(sorted(_ops))}")
    global _asked
    before = _asked
    _asked = {_EVERY_OP: backend} if ops is None else {**before, **dict.fromkeys(ops, backend)}
    try:
        yield
    finally:
        _asked = before


@contextlib.contextmanager
def use_rival(name: str, implementation: Callable[..., Any]) -> Iterator[None]:
    """Run the body with another ``implementation`` of op ``name`` than its own two, called as the reference is.

    For benches: whole networks on somebody else's op. It is stronger than any backend; ops with an explicit backward
    do not look at it. Raises ValueError for an op that is not registered.
    """
    if name not in _ops:
        raise ValueError(f"use_rival: name is {name!r}, expected one of {', '.join(sorted(_ops))}")
    global _rivals
    before = _rivals
    _rivals = {**before, name: implementation}
    try:
        yield
    finally:
        _rivals = before


def choose(name: str, device: torch.device) -> Choice:
    """Say which implementation of op ``name`` runs on ``device`` under the current backend, and why."""
    op = _ops[name]
    if name in _rivals:
        return Choice(name, "rival", "a rival was asked for", _rivals[name])
    asked = current_backend(name)
    if asked == "reference":
        return Choice(name, "reference", "backend reference was asked for", op.reference)
    fused, where = op.fused.get(device.type), ""
    if fused is None and asked == "fused" and op.needs_triton:
        if device.type == "meta":
            fused, where = op.fused.get("cuda"), ", shapes only"
        elif device.type == "cpu" and INTERPRETING:
            fused, where = op.fused.get("cuda"), ", in Triton's interpreter"
    lack = "no fused implementation"
    if fused is not None and op.needs_triton and not HAS_TRITON:
        fused, lack = None, "no Triton, so no fused implementation"
    if fused is not None:
        reason = (
            f"backend fused was asked for{where}" if asked == "fused" else f"{device.type} has a fused implementation"
        )
        return Choice(name, "fused", reason, fused)
    why = f": {op.absent[device.type]}" if device.type in op.absent else ""
    if asked == "fused":
        reason = f"backend fused was asked for, but there is {lack} of {name} on {device.type}{why}"
        return Choice(name, "refused", reason)
    return Choice(name, "reference", f"{lack} on {device.type}{why}", op.reference)


def choices(device: torch.device) -> list[Choice]:
    """Return the choice for every op on ``device``, by name: what ``cacophony doctor`` and run logs print."""
    return [choose(name, device) for name in sorted(_ops)]
