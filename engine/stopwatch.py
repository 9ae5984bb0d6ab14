"""How long stretches of steps take on the device, without waiting for it before they are asked for."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager

import torch


def synchronise(device: torch.device) -> None:
    """Wait until ``device`` has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Adds up the seconds of spans (:mod:`cacophony.kernels.spans`) of the names given.

    On a GPU two events on the stream enclose a span, so the seconds are the device's, gaps for want of work included;
    elsewhere it is the clock. Spans inside a span of the same name count once.
    """

    def __init__(self, device: torch.device, names: Collection[str]) -> None:
        self.device = device
        self.names = frozenset(names)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._spare: list[torch.cuda.Event] = []
        self._open: set[str] = set()

    def span(self, name: str) -> AbstractContextManager[None]:
        """Return what a span called ``name`` enters; others than those given are not timed."""
        return self._timed(name) if name in self.names and name not in self._open else contextlib.nullcontext()

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        self._open.add(name)
        begun = self._mark()
        try:
            yield
        finally:
            ended = self._mark()
            self._open.discard(name)
            if isinstance(begun, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
                self._events.append((name, begun, ended))
            else:
                assert isinstance(begun, float)
                assert isinstance(ended, float)
                self._seconds[name] += ended - begun

    def _mark(self) -> "float | torch.cuda.Event":
        if self.device.type != "cuda":
            return time.perf_counter()
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def read(self) -> dict[str, float]:
        """Return the seconds of each name since the last call; waits for the device where it times on one."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, begun, ended in self._events:
            self._seconds[name] += begun.elapsed_time(ended) / 1e3
            self._spare += begun, ended
        self._events.clear()
        found = {name: self._seconds[name] for name in self.names}
        self._seconds.clear()
        return found
