"""The stopwatch adds up the spans it was asked for, and on a GPU never waits before it is read."""

import pytest
import torch
from cacophony.engine.stopwatch import Stopwatch
from cacophony.kernels.spans import listening, span


def test_spans_add_up_and_are_forgotten_once_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [5.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    stopwatch = Stopwatch(torch.device("cpu"), ("a", "b", "c"))

    def fail() -> None:
        with span("a"):
            clock[0] += 1.0
            raise KeyError

    with listening(stopwatch.span):
        for _ in range(3):
            with span("a"), span("other"):
                clock[0] += 1.0
                with span("b"), span("a"):  # the inner one lies within the outer one
                    clock[0] += 0.25
        with pytest.raises(KeyError):
            fail()
        with span("a"):
            clock[0] += 1.0
    assert stopwatch.read() == {"a": 5.75, "b": 0.75, "c": 0.0}
    assert stopwatch.read() == {"a": 0.0, "b": 0.0, "c": 0.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_time_is_the_devices_and_nothing_waits_for_it() -> None:
    stopwatch = Stopwatch(torch.device("cuda"), ("a",))
    x = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            with stopwatch.span("a"):
                for _ in range(20):
                    x = (x @ x).sigmoid()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert stopwatch.read()["a"] > 2 * 20 * 2 * 4096**3 / 5e15  # no GPU multiplies that fast
