"""Watches over the ranks of a run: one that died or hangs is named, and every rank ends instead of waiting.

A thread of each rank tells the store every second that it lives and how many exchanges its rank has begun. Rank 0
looks at all, the others at rank 0 and at its verdict. A rank in the midst of an exchange cannot be interrupted, so the
process ends at once; checkpoints appear whole or not at all, so nothing is lost but steps.
"""

import contextlib
import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch.distributed as dist

from ..errors import RunError
from .distributed import RanksLost, World, host_name

_BEATS = 5
"""Beats that a rank may miss before others, whose exchange with it broke off, call it gone."""


@dataclass
class _Seen:
    """What a rank last said, and since when."""

    beat: str
    begun: int
    host: str
    since: float


def end_process(message: str) -> NoReturn:
    """Print ``message`` and end this process with exit code 1, whatever its other threads wait for."""
    print(f"cacophony: {message}", file=sys.stderr, flush=True)
    os._exit(1)


class RankWatch:
    """The watch of one rank; ``with`` it the run is watched. A rank alone has none."""

    def __init__(self, world: World, timeout_seconds: float, end: Callable[[str], None] = end_process) -> None:
        """Call ``end`` with what is to blame once a rank is silent, or nothing moves, for ``timeout_seconds``."""
        self.world, self.timeout, self._end = world, timeout_seconds, end
        self.interval = min(1.0, timeout_seconds / 20)
        self._closed = threading.Event()
        self._seen: dict[int, _Seen] = {}
        self._moved = time.monotonic()
        self._beat = 0
        self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)

    def __enter__(self) -> "RankWatch":
        """Begin, once every rank has said that it lives."""
        if self.world.store is not None:
            self._store = self.world.connection()
            self._say()
            beats = [f"beat/{rank}" for rank in range(self.world.size)]
            try:
                self._store.wait(beats, datetime.timedelta(seconds=self.timeout))
            except dist.DistError as error:
                raise RanksLost(f"a rank ended before it could be watched ({str(error).splitlines()[0]})") from None
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        """Tell the other ranks what ended this one, and stop watching."""
        self._closed.set()
        if self.world.store is None:
            return
        self._thread.join()
        if error is not None:
            self._blame(f"rank {self.world.rank} on {host_name()} failed: {' '.join(str(error).split())}")
            self._let_others_read()

    def explain(self, error: BaseException) -> str:
        """Say which rank is to blame that an exchange broke off with ``error``: within a few beats it is known."""
        before = self._look(range(self.world.size))
        if before is None:
            return "rank 0 or its host, which keeps the ranks' store, is gone; continue with --resume"
        for _ in range(_BEATS):
            time.sleep(self.interval)
            if verdict := self._verdict():
                return verdict
        after = self._look(range(self.world.size)) or before
        gone = [rank for rank, seen in after.items() if seen.beat == before[rank].beat and rank != self.world.rank]
        if not gone:
            return f"an exchange between ranks broke off, though all live: {' '.join(str(error).split())}"
        verdict = f"{_names(gone, before)} died; continue with --resume"
        self._blame(verdict)
        return verdict

    def _run(self) -> None:
        while not self._closed.wait(self.interval):
            try:
                self._say()
                message = self._verdict() or self._judge()
            except RuntimeError:
                message = "rank 0 or its host, which keeps the ranks' store, is gone; continue with --resume"
            if message and not self._closed.is_set():
                self._blame(message)
                self._let_others_read()
                self._end(message)
                return

    def _say(self) -> None:
        self._beat += 1
        self._store.set(f"beat/{self.world.rank}", f"{self._beat} {self.world.exchanges.begun} {host_name()}")

    def _look(self, ranks: range) -> dict[int, _Seen] | None:
        try:
            said = self._store.multi_get([f"beat/{rank}" for rank in ranks])
        except RuntimeError:
            return None
        now, found = time.monotonic(), {}
        for rank, value in zip(ranks, said, strict=True):
            beat, begun, host = value.decode().split(" ", 2)
            found[rank] = _Seen(beat, int(begun), host, now)
        return found

    def _judge(self) -> str:
        """Return what is wrong with the ranks that this one looks at; nothing where all is well."""
        now, looked_at = time.monotonic(), range(self.world.size if self.world.is_main else 1)
        found = self._look(looked_at)
        if found is None:
            raise RuntimeError
        for rank, seen in found.items():
            last = self._seen.get(rank)
            if last is None or seen.begun != last.begun:
                self._moved = now
            if last is None or seen.beat != last.beat:
                self._seen[rank] = seen
        silent = [rank for rank, seen in self._seen.items() if now - seen.since > self.timeout]
        if silent:
            return (
                f"{_names(silent, self._seen)} gave no sign of life for {self.timeout:g} s (timeout_seconds): its "
                "process or host is gone; continue with --resume"
            )
        if self.world.is_main and now - self._moved > self.timeout:
            return self._nothing_moves()
        return ""

    def _nothing_moves(self) -> str:
        begun = {rank: seen.begun for rank, seen in self._seen.items()}
        behind = [rank for rank, count in begun.items() if count < max(begun.values())]
        if not behind:
            return (
                f"all ranks are in the same exchange, and nothing moved for {self.timeout:g} s (timeout_seconds): "
                "check the network and the GPUs; continue with --resume"
            )
        return (
            f"{_names(behind, self._seen)} hangs: the other ranks waited for {self.timeout:g} s (timeout_seconds); "
            "continue with --resume"
        )

    def _verdict(self) -> str:
        return self._store.get("verdict").decode() if self._store.check(["verdict"]) else ""

    def _let_others_read(self) -> None:
        """Wait for some beats where the store may end with this process."""
        if self.world.is_main:
            time.sleep(3 * self.interval)

    def _blame(self, message: str) -> None:
        try:
            if not self._verdict():
                self._store.set("verdict", message)
        except RuntimeError:
            return  # the store is gone, and with it its host


@contextlib.contextmanager
def watched(world: World, timeout_seconds: float) -> Iterator[None]:
    """Watch over the ranks in the body; raises RunError that says who is to blame for an exchange that broke off."""
    with RankWatch(world, timeout_seconds) as watch:
        try:
            world.barrier()  # the first exchange is what connects GPUs: where that hangs, it is said
            yield
        except RanksLost as error:
            raise RunError(watch.explain(error)) from None


def _names(ranks: list[int], seen: dict[int, _Seen]) -> str:
    return "rank " + ", ".join(f"{rank} on {seen[rank].host}" for rank in ranks)
