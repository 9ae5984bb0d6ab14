"""Time of stage 2's whole update, SAM included, at the paper's batch: ours beside what plain PyTorch makes of it.

Right first: a provider whose gradients are wrong has a reason instead of a time. Providers come one after another, for
each takes most of the memory; the compiled ones last, whose compiling takes long.
"""

import gc
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.batch import AudioTextBatch
from ..engine.build import build_model
from ..engine.config import ContrastiveRunConfig, Precision
from ..engine.gpus import peak_flops
from ..engine.plan import UPDATE_BYTES_PER_PARAMETER
from ..engine.presets import PRESETS
from ..engine.stopwatch import synchronise
from ..errors import InputError
from ..models.by_hand import Stash
from ..models.layers import init_weights
from .harness import Stopwatch
from .providers import check_names, why
from .roofline import Roofs
from .training_step import StepWork
from .update_step import UpdateStep, check_gradients, update_batch
from .update_ways import WAYS, Lengths, UpdateProvider, candidates, run_config

CUT = "cut: the time for the updates was over"
_UPDATE_SECONDS = 0.3  # for timing what is not a gradient
# Shares of the time: ours is planned first, the compiled one compiled.
_WEIGHTS: dict[UpdateProvider, int] = {"fused": 3, "gradcache": 2, "gradcache packed": 1, "compile": 3}


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """What is timed."""

    preset: str = "paper_stage2"
    clips: int = 4096
    """Clips of an update; a rival that would take too long makes one of fewer, which its row says."""
    micro_batch_size: int = 64
    """Clips of a forward pass of the rivals, halved where memory is out; ours is planned."""
    rounds: int = 3
    """Updates timed of each provider, time permitting; at least one is."""
    precision: Precision = "bf16"
    lengths: Sequence[Lengths] = ("realistic", "full")
    providers: Sequence[UpdateProvider] = tuple(WAYS)
    device: str = "cpu"
    part_seconds: float | None = None
    """What would start later is cut."""

    def check(self) -> None:
        """Raise InputError where a number is too small or a name unknown."""
        for name in ("clips", "micro_batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected at least 1")
        check_names("preset", [self.preset], list(PRESETS["contrastive"]))
        check_names("lengths", self.lengths, ["realistic", "full"])
        check_names("provider", self.providers, list(WAYS))


@dataclass(frozen=True)
class UpdateTiming:
    """An update's time in seconds (median, 20th and 80th percentile), what it moved, and its parts."""

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
    """Most memory allocated at a time, all of it: weights, optimiser, batch; None on a CPU."""
    sam_over_plain: float
    """Time of an update over that of one without SAM."""
    sam_and_adamw_seconds: float
    """Median time of norm, perturbation and AdamW alone."""
    sam_and_adamw_over_copy: float | None
    """The same over the time in which their 44 bytes a parameter are copied; None without a measured roof."""


@dataclass(frozen=True)
class UpdateRow:
    """One provider on one batch; either ``timing`` or the ``reason`` why there is none."""

    lengths: Lengths
    provider: UpdateProvider
    clips: int
    micro_batch_size: int | None = None
    stash: int | None = None
    reason: str | None = None
    timing: UpdateTiming | None = None


@dataclass
class _Course:
    """The time there is, and what it has to be divided among."""

    until: float
    weight_to_come: int

    def allowance(self, weight: int) -> float:
        """Return the seconds for a case of ``weight``, which is then no more to come."""
        left = (self.until - time.perf_counter()) * weight / self.weight_to_come
        self.weight_to_come -= weight
        return left


def bench_updates(settings: UpdateSettings, roofs: Roofs | None) -> Iterator[UpdateRow]:
    """Time updates of every provider on every batch; one that is wrong or fails has a reason instead."""
    settings.check()
    cases: list[tuple[UpdateProvider, Lengths]] = [
        (provider, lengths)
        for compiled in (False, True)
        for lengths in settings.lengths
        for provider in settings.providers
        if (provider == "compile") == compiled
    ]
    seconds = math.inf if settings.part_seconds is None else settings.part_seconds
    course = _Course(time.perf_counter() + seconds, sum(_WEIGHTS[provider] for provider, _ in cases))
    device = torch.device(settings.device)
    config = run_config(settings.preset, "fused", settings.precision, settings.clips, settings.clips)
    model = build_model(config)
    init_weights(model, config.seed)
    checked: set[tuple[UpdateProvider, Stash]] = set()
    for provider, lengths in cases:
        until = time.perf_counter() + course.allowance(_WEIGHTS[provider])
        if time.perf_counter() >= course.until:
            yield UpdateRow(lengths, provider, settings.clips, reason=CUT)
            continue
        batch = update_batch(lengths, settings.clips, config, device)
        yield _Case(lengths, provider, settings, device, roofs, model, checked).row(batch, until)
        del batch
        _free(device)


def update_ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by lengths how many times as many clips a second ours does as another, from rows as in the JSON."""
    found: dict[str, dict[str, float]] = {}
    for lengths in dict.fromkeys(row["lengths"] for row in rows):
        rates = {r["provider"]: r["timing"]["clips_per_s"] for r in rows if r["lengths"] == lengths and r["timing"]}
        ours = rates.pop("fused", None)
        if ours is not None:
            found[lengths] = {f"fused_over_{name}": ours / rate for name, rate in rates.items()}
    return found


@dataclass(frozen=True)
class _Case:
    """A provider on a batch."""

    lengths: Lengths
    provider: UpdateProvider
    settings: UpdateSettings
    device: torch.device
    roofs: Roofs | None
    model: nn.Module
    checked: set[tuple[UpdateProvider, Stash]]
    """Whose gradients are right, by stash."""

    def row(self, batch: AudioTextBatch, until: float) -> UpdateRow:
        """Check and time it, from its largest micro-batch to those for which there is memory."""
        asked, reason = self.settings, "out of memory"
        whole = run_config(asked.preset, self.provider, asked.precision, asked.clips, asked.micro_batch_size)
        try:
            for config in candidates(whole, self.provider, batch, self.device):
                what = (self.provider, config.objective.stash)
                if what not in self.checked:
                    check_gradients(*what, self.device)
                    self.checked.add(what)
                try:
                    clips, timing = self._time(config, batch, until)
                except torch.OutOfMemoryError:
                    continue  # once the frames that hold the memory are left
                finally:
                    _free(self.device)
                how = (config.micro_batch_size, config.objective.stash)
                return UpdateRow(self.lengths, self.provider, clips, *how, timing=timing)
        except Exception as error:
            reason = why(error)
        return UpdateRow(self.lengths, self.provider, asked.clips, reason=reason)

    def _time(self, config: ContrastiveRunConfig, batch: AudioTextBatch, until: float) -> tuple[int, UpdateTiming]:
        step = UpdateStep(self.model, config, WAYS[self.provider].ops, self.device)
        few = batch.select(0, min(2 * config.micro_batch_size, batch.num_clips))
        step.run(few)
        per_clip = self._seconds(step, few)[0] / few.num_clips
        clips, fewest = batch.num_clips, batch.num_clips if self.provider == "fused" else 2 * few.num_clips
        # There is time for an update and a plain one, which takes half as long.
        while clips > fewest and 1.5 * clips * per_clip > until - time.perf_counter():
            clips //= 2
        some = batch.select(0, clips)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds: list[float] = []
        work = StepWork(0, 0)
        while len(seconds) < self.settings.rounds:
            taken, work = self._seconds(step, some)
            seconds.append(taken)
            if time.perf_counter() + 1.5 * taken > until:
                break
        peak_bytes = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        plain_seconds, _ = self._seconds(step, some, sam=False)
        return clips, self._timing(step, seconds, work, clips, peak_bytes, plain_seconds)

    def _seconds(self, step: UpdateStep, batch: AudioTextBatch, *, sam: bool = True) -> tuple[float, StepWork]:
        synchronise(self.device)
        begun = time.perf_counter()
        work = step.run(batch, sam=sam)
        synchronise(self.device)
        return time.perf_counter() - begun, work

    def _timing(
        self,
        step: UpdateStep,
        seconds: Sequence[float],
        work: StepWork,
        clips: int,
        peak_bytes: int | None,
        plain_seconds: float,
    ) -> UpdateTiming:
        p20, median, p80 = np.quantile(seconds, (0.2, 0.5, 0.8)).tolist()
        peak = peak_flops(self.device)
        stopwatch, task = Stopwatch(self.device), step.update_alone()
        stopwatch.warm_up(task, _UPDATE_SECONDS / 3)
        alone = float(np.median(stopwatch.samples(task, _UPDATE_SECONDS)))
        moved = UPDATE_BYTES_PER_PARAMETER[2] * sum(parameter.numel() for parameter in step.model.parameters())
        return UpdateTiming(
            seconds=median,
            seconds_p20=p20,
            seconds_p80=p80,
            rounds=len(seconds),
            clips_per_s=clips / median,
            valid_tokens_per_s=work.valid_tokens / median,
            model_tflops_per_s=work.model_flops / median / 1e12,
            mfu=work.model_flops / median / peak if peak else None,
            peak_bytes=peak_bytes,
            sam_over_plain=median / plain_seconds,
            sam_and_adamw_seconds=alone,
            sam_and_adamw_over_copy=alone / (moved / self.roofs.copy_gb_per_s / 1e9) if self.roofs else None,
        )


def _free(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> int:
    """Bench the settings read from stdin as JSON and write one row a line, as it is known: for other processes."""
    asked = json.load(sys.stdin)
    roofs = Roofs(**asked["roofs"]) if asked["roofs"] else None
    for row in bench_updates(UpdateSettings(**asked["settings"]), roofs):
        print(json.dumps(asdict(row)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
