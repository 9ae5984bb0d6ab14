"""How a call is timed, and what of it: forward, backward alone, or both.

On CUDA a sample lies between two events on the stream. Before it the L2 cache is overwritten, and the device is kept
busy for as long as the host takes to launch the call, so that gaps between launches are not counted; what a call makes
the host wait for is. On a CPU a sample is read off the clock.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..kernels.accuracy import copy_inputs, named_tensors, random_cotangent
from ..kernels.spec import Inputs

Pass = Literal["forward", "backward", "both"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "both")

_CLOCK_HZ = 2e9  # of a multiprocessor, roughly: it sets how long the device is kept busy, no figure depends on it
_LONGEST_LEAD_S = 0.02


@dataclass(frozen=True)
class Task:
    """What is timed: ``run(prepare())``, of which ``prepare`` is not."""

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Timing:
    """Percentiles of the samples in milliseconds, how many there were, and the peak of memory a call took on top."""

    ms_p20: float
    ms_p50: float
    ms_p80: float
    samples: int
    extra_bytes: int | None
    """None where the device does not count."""

    @classmethod
    def of(cls, seconds: Sequence[float], extra_bytes: int | None) -> "Timing":
        """Summarise samples in seconds."""
        p20, p50, p80 = (1e3 * np.quantile(seconds, (0.2, 0.5, 0.8))).tolist()
        return cls(p20, p50, p80, len(seconds), extra_bytes)


def tasks(function: Callable[..., Any], inputs: Inputs) -> dict[Pass, Task]:
    """Return what there is to time of ``function``: the forward pass, and the gradients of all inputs that ask for one.

    The backward pass runs once on a graph made for it outside the time: compiled graphs cannot be kept for a second.
    """
    inputs = copy_inputs(inputs)
    leaves = [leaf for _, leaf in named_tensors(inputs) if leaf.requires_grad]

    def forward() -> list[Tensor]:
        return [output for _, output in named_tensors(function(**inputs)) if output.requires_grad]

    found: dict[Pass, Task] = {"forward": Task(lambda _: function(**inputs))}
    outputs = forward() if leaves else []
    if not outputs:
        return found
    cotangents = [random_cotangent(output.detach()) for output in outputs]
    del outputs

    def backward(outputs: list[Tensor]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)

    found["backward"] = Task(backward, forward)
    found["both"] = Task(lambda _: backward(forward()))
    return found


class Stopwatch:
    """Times tasks on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._lead_s = 0.0
        if device.type == "cuda":
            cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
            self._cold = torch.empty(max(4 * cache_bytes, 2**28), dtype=torch.int8, device=device)

    def once(self, task: Task) -> float:
        """Return the seconds of one call."""
        prepared = task.prepare()
        if self.device.type != "cuda":
            started = time.perf_counter()
            task.run(prepared)
            return time.perf_counter() - started
        with torch.cuda.device(self.device):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._cold.zero_()
            torch.cuda._sleep(int(self._lead_s * _CLOCK_HZ))
            start.record()
            task.run(prepared)
            stop.record()
            stop.synchronize()
            return start.elapsed_time(stop) / 1e3

    def warm_up(self, task: Task, seconds: float) -> None:
        """Run ``task`` for at least ``seconds`` and three times, and learn how long the host takes to launch it."""
        launch_seconds = []
        started = time.perf_counter()
        while time.perf_counter() - started < seconds or len(launch_seconds) < 3:
            prepared = task.prepare()
            self._synchronise()
            begun = time.perf_counter()
            task.run(prepared)
            launch_seconds.append(time.perf_counter() - begun)
            self._synchronise()
        self._lead_s = min(2 * float(np.median(launch_seconds)), _LONGEST_LEAD_S)

    def samples(self, task: Task, seconds: float, *, at_least: int = 5, at_most: int = 1000) -> list[float]:
        """Return the seconds of single calls, as many as fit into ``seconds``."""
        found: list[float] = []
        started = time.perf_counter()
        while len(found) < at_least or (time.perf_counter() - started < seconds and len(found) < at_most):
            found.append(self.once(task))
        return found

    def extra_bytes(self, task: Task) -> int | None:
        """Return the peak of memory a call allocates on top of what is there before it, outputs included."""
        if self.device.type != "cuda":
            return None
        prepared = task.prepare()
        self._synchronise()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        kept = task.run(prepared)
        self._synchronise()
        del kept
        return torch.cuda.max_memory_allocated(self.device) - before

    def waits_for_device(self, task: Task) -> bool | None:
        """Whether a call makes the host wait for the device; None on a CPU, where nothing can."""
        if self.device.type != "cuda":
            return None
        prepared = task.prepare()
        self._synchronise()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            task.run(prepared)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return False

    def launches(self, task: Task) -> int | None:
        """Return how many kernels, copies and fills a call puts on the device; None where no profiler counts them."""
        if self.device.type != "cuda":
            return None
        prepared = task.prepare()
        self._synchronise()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            task.run(prepared)
            self._synchronise()
        on_device = [event for event in profile.events() or () if event.device_type.name == "CUDA"]
        return len(on_device) or None

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(
    contestants: Mapping[str, Task], stopwatch: Stopwatch, *, seconds: float, warm_up_seconds: float, rounds: int
) -> dict[str, Timing | Exception]:
    """Time every task, taking turns for ``rounds`` rounds of ``seconds`` each, so that what else happens falls on all.

    A task that raises has its exception for a result and takes no further turn.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    extra_bytes: dict[str, int | None] = {}
    failures: dict[str, Exception] = {}
    for _ in range(rounds):
        for name, task in contestants.items():
            if name in failures:
                continue
            try:
                stopwatch.warm_up(task, warm_up_seconds)
                if name not in extra_bytes:
                    extra_bytes[name] = stopwatch.extra_bytes(task)
                samples[name] += stopwatch.samples(task, seconds)
            except Exception as error:
                failures[name] = error
    return {name: failures.get(name) or Timing.of(samples[name], extra_bytes[name]) for name in contestants}
