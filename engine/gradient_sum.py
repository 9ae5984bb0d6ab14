"""Sums the gradient over ranks bucket by bucket, while the backward pass of the last micro-batch goes on.

The first gradient is a rehearsal: it is summed when it is done, and what was added to which parameter while the last
micro-batch's backward pass went on is counted. The order in which buckets became whole is taken from rank 0, and a rank
that counted otherwise is refused. From then on a bucket's exchange begins as soon as the last addition to its last
parameter has been made, in that order on all ranks. It runs beside the backward pass (on a GPU on NCCL's stream), and
what is left of it is waited for before the norm.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..models.gradients import listening_to_gradients, tell_of
from .arena import Arena
from .distributed import World


@dataclass(frozen=True)
class Rehearsed:
    """What a gradient's last backward pass does: order in which buckets become whole, additions to each parameter."""

    order: list[int]
    additions: dict[str, int]


class GradientSum:
    """Sums the gradient of an arena over the ranks of ``world``.

    Where the arena is shared each rank gets its slices, and the whole gradient is zero afterwards; else each gets all.
    """

    def __init__(self, arena: Arena, world: World) -> None:
        self.arena, self.world = arena, world
        self.rehearsed: Rehearsed | None = None
        """What all ranks agreed on after the first gradient."""
        self._names = {id(place.parameter): name for name, place in arena.places.items()}
        self._begun: dict[int, dist.Work] = {}
        self._left: Counter[str] = Counter()
        self._missing: Counter[int] = Counter()
        self._heard: list[tuple[str, bool]] = []
        self._is_last = False
        if world.size > 1:
            for place in arena.places.values():
                tell_of(place.parameter)

    def watching(self) -> AbstractContextManager[Any]:
        """Return the context in which a gradient is computed; :meth:`finish` comes after it."""
        self._begun.clear()
        self._heard.clear()
        return listening_to_gradients(self) if self.world.size > 1 else contextlib.nullcontext()

    def finish(self) -> None:
        """Let what comes wait until all of the gradient is summed, what has not been begun included."""
        if self.world.size == 1:
            return
        for number in range(len(self.arena.layout.buckets)):
            if number not in self._begun:
                self._begin(number)
        self.world.finish(self._begun.values())
        self._begun.clear()
        if self.arena.world.size > 1:
            self.arena.gradient.zero_()
        if self.rehearsed is None and any(is_last for _, is_last in self._heard):
            self._agree()

    def added(self, parameters: Iterable[Tensor]) -> None:
        """Hear that the gradients of ``parameters`` have been added to."""
        if self.rehearsed is None:
            self._heard += [(self._names[id(parameter)], self._is_last) for parameter in parameters]
        elif self._is_last:
            for parameter in parameters:
                self._count(self._names[id(parameter)])
            self._begin_whole()

    @contextlib.contextmanager
    def last(self) -> Iterator[None]:
        """Hear that the last additions begin; raises RuntimeError where one that was expected has not come."""
        self._is_last = True
        try:
            if self.rehearsed is not None:
                self._left = Counter(self.rehearsed.additions)
                self._missing = Counter(self.arena.places[name].bucket for name in self._left)
                self._begin_whole()
            yield
        finally:
            self._is_last = False
        for name, left in self._left.items():
            if left:
                self._refuse(name, self.rehearsed.additions[name] - left if self.rehearsed else 0)

    def _count(self, name: str) -> None:
        if not self._left[name]:
            raise RuntimeError(
                f"{name}: rank {self.world.rank} added to its gradient once more than in the first step's last "
                "micro-batch, after it was summed; every micro-batch must use every parameter equally often"
            )
        self._left[name] -= 1
        if not self._left[name]:
            self._missing[self.arena.places[name].bucket] -= 1

    def _begin_whole(self) -> None:
        """Begin the exchange of buckets that are whole, none before those that come before it on all ranks."""
        assert self.rehearsed is not None
        for number in self.rehearsed.order[len(self._begun) :]:
            if self._missing[number]:
                return
            self._begin(number)

    def _begin(self, number: int) -> None:
        arena, bucket = self.arena, self.arena.layout.buckets[number]
        whole = arena.gradient[bucket.whole]
        if arena.world.size > 1:
            self._begun[number] = self.world.begin_sum_shares(whole, arena.own_gradient[bucket.own])
        else:
            self._begun[number] = self.world.begin_sum_(whole)

    def _agree(self) -> None:
        """Take what rank 0 heard in the first gradient; raises RuntimeError where this rank heard something else."""
        heard = {name for name, _ in self._heard}
        for name in self.arena.places:
            if name not in heard:
                raise RuntimeError(f"{name} got no gradient on rank {self.world.rank}; expected one in every step")
        additions = Counter(name for name, is_last in self._heard if is_last)
        whole_at = dict.fromkeys(range(len(self.arena.layout.buckets)), -1)
        for at, (name, is_last) in enumerate(self._heard):
            if is_last:
                whole_at[self.arena.places[name].bucket] = at
        own = Rehearsed(sorted(whole_at, key=whole_at.__getitem__), dict(additions))
        # Every exchange is counted on every rank, so the count is a name that all know and none has used.
        agreed = self.world.from_main(f"gradient/{self.world.exchanges.begun}", json.dumps(asdict(own)))
        self.rehearsed = Rehearsed(**json.loads(agreed))
        self._heard.clear()
        for name in self.arena.places:
            if additions[name] != self.rehearsed.additions.get(name, 0):
                self._refuse(name, additions[name])

    def _refuse(self, name: str, found: int) -> None:
        expected = self.rehearsed.additions.get(name, 0) if self.rehearsed else 0
        raise RuntimeError(
            f"{name}: rank {self.world.rank} added to its gradient {found} times in the last micro-batch, expected "
            f"{expected}; every micro-batch must use every parameter equally often"
        )
