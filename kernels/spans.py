"""Named stretches of a step: who listens is told when one begins and ends; without a listener they cost nothing.

A run's :class:`~cacophony.engine.stopwatch.Stopwatch` listens to a few, a profile to all, the calls of ops included.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Opens = Callable[[str], AbstractContextManager[Any]]
"""Returns what is entered where the span of that name begins and left where it ends."""


@dataclass(frozen=True)
class OpCall:
    """A call of op ``name``, with its arguments as the op's reference takes them; none where it is a step of the op."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    with_backward: bool = False
    """Whether the call computes the op's gradients as well."""


OpOpens = Callable[[OpCall], AbstractContextManager[Any]]

_NOTHING: AbstractContextManager[Any] = contextlib.nullcontext()
# For the process, as the backend asked for: autograd calls ops from threads of its own.
_listeners: tuple[Opens, ...] = ()
_op_listener: OpOpens | None = None


def span(name: str) -> AbstractContextManager[Any]:
    """Return the context of a stretch of a step called ``name``."""
    if not _listeners:
        return _NOTHING
    if len(_listeners) == 1:
        return _listeners[0](name)
    stack = contextlib.ExitStack()
    for opens in _listeners:
        stack.enter_context(opens(name))
    return stack


@contextlib.contextmanager
def listening(opens: Opens) -> Iterator[None]:
    """Tell ``opens`` of every span in the body."""
    global _listeners
    before = _listeners
    _listeners = (*before, opens)
    try:
        yield
    finally:
        _listeners = before


def op_listener() -> OpOpens | None:
    """Return who is told of every call of an op; None as a rule."""
    return _op_listener


@contextlib.contextmanager
def listening_to_ops(opens: OpOpens) -> Iterator[None]:
    """Tell ``opens``, and nobody else, of every call of an op in the body."""
    global _op_listener
    before = _op_listener
    _op_listener = opens
    try:
        yield
    finally:
        _op_listener = before


def step_of(op: str, *, arguments: int = 0) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function's calls count as calls of ``op``, though they do not go through its dispatch.

    It is a step of the op, or where the first so many of its ``arguments`` are the op's, forward and backward at once.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def told(*args: P.args, **kwargs: P.kwargs) -> R:
            if _op_listener is None:
                return function(*args, **kwargs)
            with _op_listener(OpCall(op, args[:arguments], with_backward=arguments > 0)):
                return function(*args, **kwargs)

        return told

    return decorate
