"""The cases of ``cacophony bench kernels`` under pytest-benchmark: ``pytest bench/``.

    pytest bench/ --benchmark-save before              # ... and after a change:
    pytest bench/ --benchmark-compare --benchmark-compare-fail=median:5%

A wrong result fails the test instead of being timed. On a GPU the paper's shapes are timed on the fused ops and the
reference, elsewhere the small ones on the reference. Rates, share of the roof and memory are in ``extra_info``.
"""

import dataclasses
import functools
from typing import Any

import pytest
import torch
from cacophony.bench.harness import PASSES, Pass, Stopwatch, Timing, tasks
from cacophony.bench.kernels import DTYPES, KernelSettings, pass_figures, pass_work, planned
from cacophony.bench.providers import implementation
from cacophony.bench.roofline import Roofs, measure_roofs
from cacophony.kernels.accuracy import Truth
from cacophony.kernels.spec import Inputs

pytest.importorskip("pytest_benchmark")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROVIDERS = ("fused", "reference") if DEVICE.type == "cuda" else ("reference",)
PLANNED = planned(KernelSettings(device=str(DEVICE)))
ROUNDS = 30 if DEVICE.type == "cuda" else 5


class Clock:
    """Stands still except for what the stopwatch measured: CUDA events, not the host, say how long a round took."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(scope="module")
def roofs() -> Roofs:
    return measure_roofs(DEVICE, seconds=0.1)


@functools.lru_cache(maxsize=1)  # neighbours share the case, and a second one might not fit the device
def truth_of(number: int) -> tuple[Inputs, Truth]:
    spec, case, dtype = PLANNED[number]
    inputs = case.inputs(DEVICE, DTYPES[dtype])
    return inputs, Truth.of(spec, inputs, DTYPES[dtype])


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("number", range(len(PLANNED)), ids=[f"{s.name}: {c.name}, {d}" for s, c, d in PLANNED])
def test_time(benchmark: Any, roofs: Roofs, number: int, provider: str, pass_: Pass) -> None:
    spec, _, dtype = PLANNED[number]
    function = implementation(provider, spec, DEVICE)
    assert function is not None
    inputs, truth = truth_of(number)
    assert all(deviation.ok for deviation in truth.deviations(function, inputs))
    task = tasks(function, inputs).get(pass_)
    if task is None:
        pytest.skip("there is nothing to differentiate")
    stopwatch = Stopwatch(DEVICE)
    stopwatch.warm_up(task, 0.02)
    samples: list[float] = []

    def one_round() -> None:
        samples.append(stopwatch.once(task))
        CLOCK.now += samples[-1]

    benchmark.pedantic(one_round, rounds=ROUNDS)
    timing = Timing.of(samples, stopwatch.extra_bytes(task))
    figures = pass_figures(timing, pass_work(spec, inputs)[pass_], dtype, roofs)
    benchmark.extra_info.update(dataclasses.asdict(figures))
