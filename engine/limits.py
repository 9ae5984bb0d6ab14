"""What limits a run: its loader alone, its device alone, copies, ranks, both together; nothing is trained or written.

``cacophony train … --limits``.
"""

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..data.batch import AudioTextBatch
from ..data.dali_decoder import choose_decoder
from ..data.loader import Loader
from ..data.shards import Shards
from ..data.tokens import resolve_tokenizer
from ..errors import InputError
from ..kernels import backend
from ..kernels.spans import listening
from ..models.layers import init_weights
from .build import Config, build_model, build_objective, build_updater
from .config import ContrastiveRunConfig, Stage
from .distributed import World, join_world
from .gpus import peak_flops
from .initialisation import tokenizer_spec
from .phases import ASCENT, COLLECTIVE, STEP
from .rank_agreement import check_agreement, run_facts, withdrawing
from .rank_watch import watched
from .run_data import check_batch, loader_config
from .stopwatch import Stopwatch, synchronise
from .trainer import make_step
from .update import Outcome

PART_SECONDS = 12.0
"""Time of a part, though every one makes a step at least: a minute for all."""

_CLOSE = 1.1
"""Two times no further apart than this factor are as good as equal."""
_MUCH = 0.15
"""Share of a step beyond which communication, or copying, is worth changing."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds a step of one rank takes in each part, None where there is no such part; the means of all ranks."""

    batch_clips: int
    """Clips of a step on this rank."""
    ranks: int
    loader: float
    """To make a batch, nothing else running."""
    copy: float | None
    """To copy a batch to the device; None where it is made there."""
    device: float
    """To make a step on noise of the batch's sizes, nothing loaded."""
    collectives: float | None
    """Of that, computation waiting for other ranks; None where there are none."""
    ascent: float
    """Of that, what SAM adds."""
    mfu: float | None
    """Model FLOPs of that over the device's peak; None where it is not known."""
    both: float
    """To load and make a step, as a run does."""


def measure_limits(stage: Stage, config: Config, data: Path, *, part_seconds: float) -> Limits | None:
    """Measure a run of ``config`` on the shards in ``data``, each part for so long; None on every rank but the first.

    Raises InputError as a run would, before it measures, and RunError where other ranks are lost.
    """
    world = join_world(config.device, config.timeout_seconds)
    with contextlib.ExitStack() as opened:
        with withdrawing(world):
            check_batch(config, world)
            shards = opened.enter_context(Shards.open(data, config.data.sources))
            if isinstance(config, ContrastiveRunConfig) and not shards.has_captions:
                raise InputError("the shards have no captions, stage 2 needs them: pack with --captions captions.csv")
        facts = run_facts(stage, config, shards.fingerprint, None, is_continued=False)
        check_agreement(world, facts, config.timeout_seconds)
        with watched(world, config.timeout_seconds), backend.use_backend(config.backend):
            found = _measure(config, shards, world, part_seconds)
    world.barrier()  # rank 0 may keep the store that the others watch
    world.close()
    return found if world.is_main else None


def _measure(config: Config, shards: Shards, world: World, seconds: float) -> Limits:
    device = world.device
    tokenizer = None
    if isinstance(config, ContrastiveRunConfig):
        tokenizer, _ = resolve_tokenizer(tokenizer_spec(config, None), shards.captions(), config.model.text.vocab_size)
    decoder, _ = choose_decoder(config.data.loader, device.type, config.data.workers)
    loader = Loader(shards, loader_config(config, device), tokenizer, world.rank, world.size, decoder)
    try:
        for _ in range(config.data.prefetch_batches):  # those made ahead, while nobody waited
            next(loader)
        batch = next(loader)
        load_seconds = _seconds(lambda: next(loader), world, seconds)

        copied = batch.to(device)
        copy_seconds = None
        if device.type == "cuda":
            copy_seconds = _seconds(lambda: batch.to(device), world, seconds / 6)

        objective, model = build_objective(config, world), build_model(config)
        init_weights(model, config.seed)
        updater = build_updater(model.to(device), config, world)
        noise = noise_like(copied, config.seed)
        stopwatch = Stopwatch(device, (STEP, ASCENT, COLLECTIVE))
        outcomes: list[Outcome] = []
        numbers = itertools.count()

        def step(batch: AudioTextBatch) -> None:
            # SAM may be at some steps only.
            outcomes.append(make_step(updater, objective, batch, next(numbers) % config.steps, config)[1])

        def timed_step() -> None:
            with listening(stopwatch.span):  # what ranks exchange between two steps is the measurement's
                step(noise)

        for _ in range(2):  # compiles, allocates; the second sums over ranks as all that come
            step(noise)
        outcomes.clear()
        step_seconds = _seconds(timed_step, world, seconds)
        spans = stopwatch.read()
        ascent, collectives = (_mean(spans[name] / len(outcomes), world) for name in (ASCENT, COLLECTIVE))
        flops = sum(outcome.model_flops for outcome in outcomes) / len(outcomes)
        for _ in range(config.data.prefetch_batches):
            step(next(loader).to(device))
        both_seconds = _seconds(lambda: step(next(loader).to(device)), world, seconds)
    finally:
        loader.close()
    peak = peak_flops(device)
    return Limits(
        batch_clips=batch.num_clips,
        ranks=world.size,
        loader=load_seconds,
        copy=copy_seconds,
        device=step_seconds,
        collectives=collectives if world.size > 1 else None,
        ascent=ascent,
        mfu=flops / step_seconds / peak if peak else None,
        both=both_seconds,
    )


def noise_like(batch: AudioTextBatch, seed: int) -> AudioTextBatch:
    """Return clips and captions without meaning, of the lengths of those of ``batch`` and where they are.

    White noise; the caption tokens are the batch's own in another order.
    """
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(batch.wave.device)

    wave = (3000 * torch.randn(len(batch.wave), generator=generator)).clamp(-32768, 32767).to(torch.int16)
    order = torch.randperm(len(batch.token_ids), generator=generator)
    return replace(batch, wave=moved(wave), token_ids=batch.token_ids[moved(order)])


def _seconds(action: Callable[[], object], world: World, seconds: float) -> float:
    """Return the mean seconds of a call over calls for about ``seconds``, once at least, as many on every rank.

    The device has done what it was given before the clock is read.
    """
    synchronise(world.device)
    world.barrier()
    begun = time.perf_counter()
    calls = 0
    while True:
        action()
        calls += 1
        (over,) = world.total(time.perf_counter() - begun > seconds)
        if over > 0:
            break
    synchronise(world.device)
    return _mean((time.perf_counter() - begun) / calls, world)


def _mean(seconds: float, world: World) -> float:
    """Return the mean of the ranks' ``seconds``."""
    return float(world.total(seconds)[0]) / world.size


def describe(limits: Limits, config: Config) -> str:
    """Return a line for each part, and the sentence that says what limits the run and what to change."""
    clips = limits.batch_clips * limits.ranks

    def line(name: str, seconds: float) -> str:
        return f"{name:28}{seconds:9.3f} s a step {clips / seconds:9.1f} clips/s"

    def part(name: str, seconds: float) -> str:
        return f"  of that, {name:18}{seconds:9.3f} s a step {seconds / limits.device:9.0%}"

    lines = [
        line("loader alone", limits.loader),
        line("copy to the device", limits.copy) if limits.copy else "copy to the device: none, batches are made there",
        line("device alone, on noise", limits.device),
        part("waiting for ranks", limits.collectives)
        if limits.collectives
        else "  waiting for ranks: none, there is one",
        *([part("SAM's ascent", limits.ascent)] if limits.ascent else []),
        line("both", limits.both),
    ]
    return "\n".join([*lines, sentence(limits, config)])


def sentence(limits: Limits, config: Config) -> str:
    """Say what limits the run and what to change."""
    slowest = max(limits.loader, limits.device)
    if limits.loader > _CLOSE * limits.device:
        return (
            f"The loader limits this run: the device could be {limits.loader / limits.device:.1f} times as fast as it "
            f"is fed; raise data.workers (now {config.data.workers}) to as many as there are cores for it."
        )
    if limits.both > _CLOSE * slowest:
        return (
            f"Loader and device hold each other up: together they take {limits.both / slowest:.1f} times as long as "
            "the slower of them alone; leave cores free for the other (data.workers, OMP_NUM_THREADS), or prefetch "
            f"more (data.prefetch_batches, now {config.data.prefetch_batches})."
        )
    if limits.collectives and limits.collectives > _MUCH * limits.device:
        return (
            f"Waiting for other ranks limits this run: {limits.collectives / limits.device:.0%} of a step; raise "
            "batch_size, so that each sum serves more clips, or ranks joined by faster links."
        )
    if limits.copy and limits.copy > _MUCH * limits.device:
        return (
            f"Copying batches to the device limits this run: {limits.copy / limits.device:.0%} of a step; shorten "
            "clips (data.crop_seconds), or see whether the GPU has all its PCIe lanes."
        )
    used = f" at {limits.mfu:.0%} of its peak" if limits.mfu is not None else ""
    return f"The device limits this run{used}, as it should: {_faster(limits, config)}."


def _faster(limits: Limits, config: Config) -> str:
    """What makes a device-bound step faster, the most useful first."""
    ways = []
    if config.precision == "fp32" and limits.mfu is not None:
        ways.append("set precision to bf16")
    if config.objective.stash < 10:
        ways.append(f"keep more for the backward (objective.stash, now {config.objective.stash})")
    if config.micro_batch_size < limits.batch_clips:
        ways.append(f"raise micro_batch_size (now {config.micro_batch_size}) as far as memory goes")
    if limits.ascent > 0.3 * limits.device:
        ways.append(
            f"SAM's ascent takes {limits.ascent / limits.device:.0%} of it (update.ascent_fraction, update.sam_every)"
        )
    return "; ".join(ways) or "only more or faster devices, or a smaller network, make it faster"
