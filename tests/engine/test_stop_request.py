"""Signals that ask a run to stop."""

import signal
import time
from collections.abc import Iterator

import pytest
from cacophony.engine.stop_request import HANDED_ON_SECONDS, StopRequest


@pytest.fixture
def acted() -> Iterator[list[int]]:
    """The signals that were not taken for requests."""
    seen: list[int] = []
    old = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    yield seen
    for number, handler in old.items():
        signal.signal(number, handler)


def test_a_signal_handed_on_by_torchrun_is_no_second_one(acted: list[int], monkeypatch: pytest.MonkeyPatch):
    now = time.monotonic()
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert (stop.received, acted) == (signal.SIGTERM, [])
        monkeypatch.setattr(time, "monotonic", lambda: now + HANDED_ON_SECONDS + 60.0)
        signal.raise_signal(signal.SIGTERM)
        assert acted == [signal.SIGTERM]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_acts_at_once(acted: list[int], first: signal.Signals):
    with StopRequest() as stop:
        signal.raise_signal(first)
        assert (stop.received, acted) == (first, [])
        signal.raise_signal(signal.SIGINT)
        assert acted == [signal.SIGINT]
    signal.raise_signal(signal.SIGTERM)
    assert acted == [signal.SIGINT, signal.SIGTERM]
