"""Every op against its rivals and its roof, on every case of its SPEC: right first, then fast.

A provider's outputs and gradients are held against float64 before anything is timed; one that is wrong, not installed
or out of memory gets a reason instead of a time.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..errors import InputError, RunError
from ..kernels.accuracy import Truth
from ..kernels.spec import Case, Inputs, Spec, Work
from ..kernels.specs import SPECS
from ..kernels.triton_runtime import INTERPRETING
from .harness import Pass, Stopwatch, Task, Timing, measure, tasks
from .providers import check_names, default_providers, implementation, provider_names, specialising, why
from .roofline import Roofs

CUT = "cut: the time for the kernels was over"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class KernelSettings:
    """What is timed and for how long; an empty list means all there is."""

    ops: Sequence[str] = ()
    cases: Sequence[str] = ()
    """Empty: on a GPU the paper's shapes, elsewhere the small ones."""
    providers: Sequence[str] = ()
    """Empty: see :func:`~.providers.default_providers`."""
    dtypes: Sequence[str] = ("bfloat16",)
    device: str = "cpu"
    rounds: int = 2
    """Turns of every provider."""
    seconds: float = 0.1
    """Time of a provider's turn at one pass."""
    part_seconds: float | None = None
    """Cases that would start later are cut."""
    skip: Sequence[Sequence[str]] = ()
    """Op, case and dtype of what is left out."""

    def check(self) -> None:
        """Raise InputError where a name is unknown, no case is meant, or a number is too small."""
        check_names("op", self.ops, [spec.name for spec in SPECS])
        check_names("case", self.cases, sorted({case.name for spec in SPECS for case in spec.cases}))
        check_names("provider", self.providers, provider_names())
        check_names("dtype", self.dtypes, list(DTYPES))
        if self.rounds < 1:
            raise InputError(f"--rounds is {self.rounds}; expected at least 1")
        if not self.seconds > 0:
            raise InputError(f"--seconds is {self.seconds}; expected more than 0")
        if INTERPRETING and torch.device(self.device).type == "cuda":
            raise InputError("TRITON_INTERPRET=1 is set, and the interpreter's times mean nothing; unset it")
        if not planned(self):
            raise InputError(f"no case of {', '.join(self.ops)} is called {', '.join(self.cases)}")


@dataclass(frozen=True)
class PassFigures:
    """A pass's time, rates and share of the roof: the least time its compulsory work takes over the time it took."""

    timing: Timing
    gb_per_s: float
    tflop_per_s: float
    roof_share: float | None


@dataclass(frozen=True)
class Row:
    """One provider on one case; either ``passes`` or the ``reason`` why there is no time."""

    op: str
    case: str
    dtype: str
    provider: str
    reason: str | None = None
    checked_on: str | None = None
    """Case on which the result was held against float64."""
    waits_for_device: bool | None = None
    """Whether a forward pass makes the host wait for the device."""
    launches: dict[Pass, int | None] = field(default_factory=dict)
    """Kernels, copies and fills of each pass; None where they cannot be counted."""
    passes: dict[Pass, PassFigures] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    """Where and how a case is timed."""

    spec: Spec
    case: Case
    dtype: str
    device: torch.device
    stopwatch: Stopwatch
    roofs: Roofs | None
    settings: KernelSettings

    def row(self, provider: str, **figures: Any) -> Row:
        return Row(self.spec.name, self.case.name, self.dtype, provider, **figures)


def bench_kernels(settings: KernelSettings, roofs: Roofs | None = None) -> Iterator[Row]:
    """Yield the rows of every case and provider that ``settings`` name; shares of the roof where it is known.

    The first case of every op comes before the second of any, so that a cut takes the least. Names that are not known
    name nothing. Raises RunError where a provider left the device unusable.
    """
    started = time.perf_counter()
    device = torch.device(settings.device)
    stopwatch = Stopwatch(device)
    for spec, case, dtype in planned(settings):
        place = _Place(spec, case, dtype, device, stopwatch, roofs, settings)
        if settings.part_seconds is not None and time.perf_counter() - started > settings.part_seconds:
            yield place.row("all", reason=CUT)
        else:
            try:
                with specialising():
                    rows = _bench_case(place, settings.providers or default_providers(spec, device))
            except RunError:
                raise
            except Exception as error:
                rows = [place.row("all", reason=_failure(error, place))]
            yield from rows


def planned(settings: KernelSettings) -> list[tuple[Spec, Case, str]]:
    """Return what :func:`bench_kernels` times, in order: specs, cases and dtypes."""
    found = []
    on_gpu = torch.device(settings.device).type == "cuda"
    for spec in SPECS:
        if settings.ops and spec.name not in settings.ops:
            continue
        if settings.cases:
            cases = [case for case in spec.cases if case.name in settings.cases]
        else:
            cases = [case for case in spec.cases if case.paper == on_gpu]
        found += [(number, spec, case) for number, case in enumerate(cases)]
    ordered = sorted(found, key=lambda entry: entry[0])
    every = [(spec, case, dtype) for _, spec, case in ordered for dtype in settings.dtypes]
    skipped = {tuple(names) for names in settings.skip}
    return [entry for entry in every if (entry[0].name, entry[1].name, entry[2]) not in skipped]


def pass_work(spec: Spec, inputs: Inputs) -> dict[Pass, Work]:
    """Return what each pass of a call cannot do without."""
    forward = spec.forward(inputs)
    backward = spec.backward(inputs) if spec.backward else Work(0)
    both = Work(forward.bytes + backward.bytes, forward.flops + backward.flops)
    return {"forward": forward, "backward": backward, "both": both}


def pass_figures(timing: Timing, work: Work, dtype: str, roofs: Roofs | None) -> PassFigures:
    """Return rates and share of the roof of a pass that did ``work`` in the time measured."""
    share = roofs.floor_ms(work, dtype) / timing.ms_p50 if roofs else None
    return PassFigures(timing, work.bytes / timing.ms_p50 / 1e6, work.flops / timing.ms_p50 / 1e9, share)


def _bench_case(place: _Place, providers: Sequence[str]) -> list[Row]:
    contestants: dict[str, Callable[..., Any]] = {}
    reasons: dict[str, str] = {}
    for name in providers:
        try:
            found = implementation(name, place.spec, place.device)
            if found is not None:
                contestants[name] = found
        except Exception as error:
            reasons[name] = why(error)
    inputs = place.case.inputs(place.device, DTYPES[place.dtype])
    checked_on, wrong = _check(place, contestants, inputs)
    reasons |= wrong
    per_pass: dict[Pass, dict[str, Task]] = {}
    observed: dict[str, dict[str, Any]] = {}
    for name in [name for name in contestants if name not in reasons]:
        try:
            own = tasks(contestants[name], inputs)
            observed[name] = {
                "waits_for_device": place.stopwatch.waits_for_device(own["forward"]),
                "launches": {pass_: place.stopwatch.launches(task) for pass_, task in own.items()},
            }
            for pass_, task in own.items():
                per_pass.setdefault(pass_, {})[name] = task
        except Exception as error:
            reasons[name] = _failure(error, place)
    work = pass_work(place.spec, inputs)
    figures: dict[str, dict[Pass, PassFigures]] = {}
    for pass_, found in per_pass.items():
        running = {name: task for name, task in found.items() if name not in reasons}
        for name, timing in _measure(place, running).items():
            if isinstance(timing, Exception):
                reasons[name] = f"{pass_}: {_failure(timing, place)}"
            else:
                figures.setdefault(name, {})[pass_] = pass_figures(timing, work[pass_], place.dtype, place.roofs)
    rows = []
    for name in providers:
        if name in reasons:
            rows.append(place.row(name, reason=reasons[name]))
        elif name in figures:
            rows.append(place.row(name, checked_on=checked_on[name], passes=figures[name], **observed[name]))
    return rows


def _check(
    place: _Place, contestants: dict[str, Callable[..., Any]], inputs: Inputs
) -> tuple[dict[str, str], dict[str, str]]:
    """Return by name the cases on which results were checked, and what is wrong.

    Rivals that draw other random numbers are checked where nothing is drawn. The truth of a large case may not fit the
    device: then the small cases have to do.
    """
    settle = place.spec.rivals_checked_on
    apart = {name: function for name, function in contestants.items() if settle and name in place.spec.rivals}
    ours = {name: function for name, function in contestants.items() if name not in apart}
    cases, wrong = _check_group(place, ours, inputs, lambda made: made)
    checked_on = dict.fromkeys(ours, cases)
    if settle and apart:
        cases, wrong_apart = _check_group(place, apart, inputs, settle)
        checked_on |= dict.fromkeys(apart, f"{cases}, nothing drawn")
        wrong |= wrong_apart
    return checked_on, wrong


def _check_group(
    place: _Place,
    contestants: dict[str, Callable[..., Any]],
    inputs: Inputs,
    settle: Callable[[Inputs], Inputs],
) -> tuple[str, dict[str, str]]:
    """Return the cases checked, their inputs as ``settle`` makes them, and what is wrong with whom."""
    dtype = DTYPES[place.dtype]
    truths: list[tuple[str, Inputs, Truth]] = []
    with contextlib.suppress(torch.OutOfMemoryError):
        made = settle(inputs)
        truths.append((place.case.name, made, Truth.of(place.spec, made, dtype)))
    if not truths:
        for case in (case for case in place.spec.cases if not case.paper):
            made = settle(case.inputs(place.device, dtype))
            truths.append((case.name, made, Truth.of(place.spec, made, dtype)))
    wrong: dict[str, str] = {}
    for case, made, truth in truths:
        for name, function in contestants.items():
            try:
                too_large = [deviation for deviation in truth.deviations(function, made) if not deviation.ok]
            except torch.OutOfMemoryError as error:
                wrong[name] = f"{_failure(error, place)} while its result was checked"
                continue
            except Exception as error:
                wrong[name] = _failure(error, place)
                continue
            if too_large:
                worst = too_large[0]
                wrong[name] = (
                    f"wrong on {case}: error of {worst.tensor} is {worst.error:.3g}, allowed {worst.limit:.3g}"
                )
    return ", ".join(case for case, _, _ in truths), wrong


def _measure(place: _Place, running: dict[str, Task]) -> dict[str, Timing | Exception]:
    settings = place.settings
    return measure(
        running,
        place.stopwatch,
        seconds=settings.seconds,
        warm_up_seconds=settings.seconds / 3,
        rounds=settings.rounds,
    )


def _failure(error: Exception, place: _Place) -> str:
    """Say why a provider failed; raises RunError where nothing can run on the device any more."""
    if place.device.type == "cuda":
        try:
            torch.cuda.synchronize(place.device)
        except RuntimeError:
            raise RunError(f"{place.spec.name}, {place.case.name}: {why(error)}; the device is unusable") from error
        torch.cuda.empty_cache()
    return why(error)


def main() -> int:
    """Bench the settings read from stdin as JSON and write one row a line, as it is known: for other processes."""
    asked = json.load(sys.stdin)
    roofs = Roofs(**asked["roofs"]) if asked["roofs"] else None
    for row in bench_kernels(KernelSettings(**asked["settings"]), roofs):
        print(json.dumps(asdict(row)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
