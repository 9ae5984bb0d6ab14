"""Signals that ask a run to stop: read after a step, so that the run saves first."""

import signal
import threading
import time
import types
from typing import Any

HANDED_ON_SECONDS = 5.0
"""A SIGTERM that comes so soon after the first is the same: Slurm signals every process of a job, and torchrun, one of
them, hands on to its ranks what it got."""


class StopRequest:
    """Turns the first SIGTERM or SIGINT into a request the loop reads after its step; a second one acts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Install the handlers (in the main thread; elsewhere signals stay as they are)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the old handlers back."""
        self._restore()

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = signal.Signals(number), time.monotonic()
            return
        is_handed_on = number == self.received == signal.SIGTERM and time.monotonic() - self._at < HANDED_ON_SECONDS
        if not is_handed_on:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()
