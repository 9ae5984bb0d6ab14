"""Additions to gradients: who listens is told of each, and of the last ones; without a listener they cost nothing.

Whoever adds to a ``grad`` itself says so with :func:`gradients_added`; autograd's additions are told of parameters that
:func:`tell_of` was called with. The listener sums over ranks what is whole while the rest is computed.
"""

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


class GradientListener(Protocol):
    """Who is told."""

    def added(self, parameters: Iterable[Tensor]) -> None:
        """Hear that ``grad`` of each of these has been added to; autograd may call it from a thread of its own."""
        ...

    def last(self) -> AbstractContextManager[Any]:
        """Return what is entered before the last additions to this gradient and left after them."""
        ...


# For the process: autograd tells from threads of its own.
_listener: GradientListener | None = None


@contextlib.contextmanager
def listening_to_gradients(listener: GradientListener) -> Iterator[None]:
    """Tell ``listener``, and nobody else, of gradients in the body."""
    global _listener
    before = _listener
    _listener = listener
    try:
        yield
    finally:
        _listener = before


def gradients_added(parameters: Iterable[Tensor]) -> None:
    """Tell who listens that ``grad`` of these parameters has been added to."""
    if _listener is not None:
        _listener.added(parameters)


def tell_of(parameter: Tensor) -> None:
    """Tell who listens of what autograd adds to ``grad`` of ``parameter``: once a backward call, all uses together."""
    parameter.register_post_accumulate_grad_hook(_added_by_autograd)


def _added_by_autograd(parameter: Tensor) -> None:
    gradients_added((parameter,))


def telling_the_last(micro_batches: Iterable[T]) -> Iterator[T]:
    """Yield the micro-batches; what is added to gradients after the last one is yielded is the last of them."""
    *others, last = micro_batches
    yield from others
    with contextlib.nullcontext() if _listener is None else _listener.last():
        yield last
