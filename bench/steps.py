"""Time of an optimiser step of both stages: plain PyTorch, with its own attention, compiled; fused; packed, padded."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..engine.config import Precision, Stage
from ..engine.gpus import peak_flops
from ..engine.stopwatch import synchronise
from ..errors import InputError
from ..models.config import AUDIO_MAE_SIZES
from .providers import why
from .training_step import StepProvider, StepWork, Variant, fused_ops, training_step

STAGES: tuple[Stage, ...] = ("mae", "contrastive")


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What is timed."""

    stages: Sequence[Stage] = STAGES
    size: str = "demo"
    """Networks, see :mod:`cacophony.models.config`."""
    clips: int = 16
    """Clips of a step, in one micro-batch."""
    rounds: int = 10
    """Steps timed of each variant."""
    precision: Precision = "fp32"
    variants: Sequence[Variant] = (Variant("reference", "packed"), Variant("reference", "padded"))
    device: str = "cpu"
    stage_seconds: float | None = None
    """Fewer rounds are made, though at least one, where a stage would take longer."""

    def check(self) -> None:
        """Raise InputError where a number is too small or a name unknown."""
        for name in ("clips", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}; expected at least 1")
        if self.size not in AUDIO_MAE_SIZES:
            raise InputError(f"--size {self.size!r} is unknown; expected one of: {', '.join(AUDIO_MAE_SIZES)}")


@dataclass(frozen=True)
class StepTiming:
    """A step's time in seconds (median, 20th and 80th percentile) and what it moved at the median."""

    seconds: float
    seconds_p20: float
    seconds_p80: float
    rounds: int
    clips_per_s: float
    valid_tokens_per_s: float
    model_tflops_per_s: float
    mfu: float | None
    """Model FLOPs on valid tokens over the device's dense bf16 peak; None where that is not known."""
    peak_bytes: int | None
    """Most memory allocated at a time, weights and optimiser included; None on a CPU."""
    fused_ops: Sequence[str]


@dataclass(frozen=True)
class StepRow:
    """One variant of one stage; either ``timing`` or the ``reason`` why there is none."""

    stage: Stage
    provider: StepProvider
    layout: str
    reason: str | None = None
    timing: StepTiming | None = None


def bench_steps(settings: StepSettings) -> Iterator[StepRow]:
    """Time steps of each stage and variant, after two to warm up; a variant that fails has a reason instead.

    Variants take turns, so that what else the machine does falls on all; the compiled ones among themselves after the
    others, whose figures are then safe however long compiling takes.
    """
    settings.check()
    for stage in settings.stages:
        started = time.perf_counter()
        for compiled in (False, True):
            variants = [variant for variant in settings.variants if (variant.provider == "compile") == compiled]
            yield from _bench_variants(stage, variants, started, settings)


def step_ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by stage how many times as long one way takes as another, from rows as in the JSON.

    ``padded_over_packed`` is plain PyTorch's; ``<provider>_over_fused`` compares the faster layout of each.
    """
    found: dict[str, dict[str, float]] = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        timed = [row for row in rows if row["stage"] == stage and row["timing"]]
        best: dict[str, float] = {}
        for row in timed:
            best[row["provider"]] = min(row["timing"]["seconds"], best.get(row["provider"], np.inf))
        layouts = {row["layout"]: row["timing"]["seconds"] for row in timed if row["provider"] == "reference"}
        here = found[stage] = {}
        if len(layouts) == 2:
            here["padded_over_packed"] = layouts["padded"] / layouts["packed"]
        if "fused" in best:
            here |= {f"{name}_over_fused": best[name] / best["fused"] for name in best if name != "fused"}
    return found


def _bench_variants(
    stage: Stage, variants: Sequence[Variant], started: float, settings: StepSettings
) -> Iterator[StepRow]:
    device = torch.device(settings.device)
    ready: dict[Variant, _Ready] = {}
    reasons: dict[Variant, str] = {}
    for variant in variants:
        try:
            ready[variant] = _warm_up(stage, variant, settings, device)
        except Exception as error:
            reasons[variant] = why(error)
    seconds: dict[Variant, list[float]] = {variant: [] for variant in ready}
    for number in range(settings.rounds):
        late = settings.stage_seconds is not None and time.perf_counter() - started > settings.stage_seconds
        if number and late:
            break
        for variant in [variant for variant in ready if variant not in reasons]:
            try:
                seconds[variant].append(_seconds(ready[variant].step, device))
            except Exception as error:
                reasons[variant] = why(error)
    for variant in variants:
        row = (stage, variant.provider, variant.layout)
        if variant in reasons:
            yield StepRow(*row, reason=reasons[variant])
        else:
            yield StepRow(*row, timing=_timing(seconds[variant], ready[variant], settings.clips, variant, device))


@dataclass(frozen=True)
class _Ready:
    """A step that has been made twice, what it does, and the most memory it takes."""

    step: Callable[[], StepWork]
    work: StepWork
    peak_bytes: int | None


def _warm_up(stage: Stage, variant: Variant, settings: StepSettings, device: torch.device) -> _Ready:
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    step = training_step(stage, settings.size, settings.clips, settings.precision, variant, device)
    step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    work = step()
    return _Ready(step, work, torch.cuda.max_memory_allocated(device) - before if on_gpu else None)


def _seconds(step: Callable[[], StepWork], device: torch.device) -> float:
    synchronise(device)
    begun = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - begun


def _timing(seconds: Sequence[float], ready: _Ready, clips: int, variant: Variant, device: torch.device) -> StepTiming:
    p20, median, p80 = np.quantile(seconds, (0.2, 0.5, 0.8)).tolist()
    work, peak = ready.work, peak_flops(device)
    return StepTiming(
        seconds=median,
        seconds_p20=p20,
        seconds_p80=p80,
        rounds=len(seconds),
        clips_per_s=clips / median,
        valid_tokens_per_s=work.valid_tokens / median,
        model_tflops_per_s=work.model_flops / median / 1e12,
        mfu=work.model_flops / median / peak if peak else None,
        peak_bytes=ready.peak_bytes,
        fused_ops=fused_ops(device) if variant.provider == "fused" else (),
    )


def main() -> int:
    """Bench the settings read from stdin as JSON and write one row a line, as it is known: for other processes."""
    asked = json.load(sys.stdin)
    asked["variants"] = [Variant(**variant) for variant in asked["variants"]]
    for row in bench_steps(StepSettings(**asked)):
        print(json.dumps(asdict(row)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
