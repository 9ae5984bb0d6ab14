"""The training loop: the same for every stage; a run killed at any moment continues bit-identically."""

import contextlib
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..data.batch import AudioTextBatch
from ..data.dali_decoder import choose_decoder
from ..data.loader import Loader
from ..data.shards import Shards
from ..errors import InputError
from ..kernels import backend
from ..kernels.spans import listening, span
from ..models.config_io import to_dict
from ..models.model_directory import write_config, write_processor
from .build import AnyUpdater, Config, build_model, build_objective, build_updater, network_config
from .checkpoint import discard_unfinished
from .checkpoint_writer import CheckpointWriter
from .config import ContrastiveRunConfig, Stage
from .continuation import choose_checkpoint, restore
from .distributed import World, join_world
from .full_memory import advising
from .host_memory import give_back
from .initialisation import initialise, write_report
from .introduction import introduce
from .late_flags import LateFlags
from .objective import Objective, Report
from .peak_memory import compare_with_plan
from .phases import LOADING, PREPARE, STEP
from .rank_agreement import check_agreement, run_facts, withdrawing
from .rank_watch import watched
from .run_data import check_batch, describe_sources, loader_config, run_tokenizer
from .run_directory import (
    RunRecord,
    check_new,
    check_resumable,
    describe_changes,
    held,
    is_run,
    publish_model,
    read_record,
    write_record,
)
from .skip_watch import SkipWatch
from .stop_request import StopRequest
from .telemetry import Meter, RunLog
from .update import Outcome
from .weights_and_biases import check_wandb, start_wandb


@dataclass(frozen=True)
class Finished:
    """How :func:`train` ended: steps done, the signal that stopped it early, if any, and saves that failed.

    ``is_main``: this is the rank that says so.
    """

    steps: int
    stopped_by: signal.Signals | None
    failed_saves: tuple[str, ...] = ()
    is_main: bool = True


@dataclass(frozen=True)
class _Task:
    """What :func:`train` was asked for; ``continued`` is the run's record where it is continued."""

    stage: Stage
    config: Config
    data: Path
    out: Path
    init: Path | None
    continued: RunRecord | None
    allow_changed: bool


def train(
    stage: Stage,
    config: Config,
    data: Path,
    out: Path,
    *,
    init: Path | None = None,
    resume: bool = False,
    allow_changed: bool = False,
) -> Finished:
    """Train a run in directory ``out`` on the shards in ``data``.

    ``init`` is a model directory whose weights start this run (see :func:`~.initialisation.initialise`). ``resume``
    continues what is in ``out``, or starts where nothing is; ``allow_changed`` with another configuration. A checkpoint
    that cannot be written stops nothing. Raises InputError before anything is written where the input is wrong,
    RunError where the gradient stays non-finite or other ranks are lost.
    """
    check_wandb(config.wandb)
    record, changed = read_record(out) if resume and is_run(out) else None, {}
    if record is not None:
        changed = check_resumable(out, record, stage, config, init, allow_changed=allow_changed)
        init = Path(record.init) if record.init else None
    else:
        check_new(out)
    task = _Task(stage, config, data, out, init, record, allow_changed)
    # Joining waits for all ranks: every one has looked at ``out`` before the first writes to it.
    world = join_world(config.device, config.timeout_seconds)
    with contextlib.ExitStack() as opened:
        with withdrawing(world):
            check_batch(config, world)
            shards = opened.enter_context(Shards.open(data, config.data.sources))
            if record is not None and record.data_fingerprint != shards.fingerprint:
                raise InputError(
                    f"{data}: is not the data that {out} was started with ({record.data}, "
                    f"{describe_sources(record.config.data.sources)}); continue with that"
                )
        facts = run_facts(stage, config, shards.fingerprint, init, is_continued=record is not None)
        check_agreement(world, facts, config.timeout_seconds)
        with watched(world, config.timeout_seconds), backend.use_backend(config.backend), advising(config):
            finished = _train(task, shards, world, [f"changed: {describe_changes(changed)}"] if changed else [])
            give_back()
    world.barrier()  # rank 0 may keep the store that the others watch
    world.close()
    return finished


def _train(task: _Task, shards: Shards, world: World, notes: list[str]) -> Finished:
    config, out, init = task.config, task.out, task.init
    continued = task.continued is not None
    tokenizer, tokenizer_note = run_tokenizer(config, shards, init, out if continued else None)
    with contextlib.ExitStack() as cleanup:
        if world.is_main and continued:
            cleanup.enter_context(held(out, is_new=False))
        decoder, loader_note = choose_decoder(config.data.loader, world.device.type, config.data.workers)
        loader = Loader(shards, loader_config(config, world.device), tokenizer, world.rank, world.size, decoder)
        cleanup.callback(loader.close)
        objective = build_objective(config, world)
        model = build_model(config)
        checkpoint, damage_notes = choose_checkpoint(out, world) if continued else (None, [])
        origins = [] if checkpoint else initialise(model, config, init)
        updater = build_updater(model.to(world.device), config, world)
        first_step = 0
        if checkpoint:
            first_step = restore(checkpoint, updater, loader, config, allow_changed=task.allow_changed)

        if world.is_main:
            if not continued:  # only now, so that a wrong input leaves no directory
                cleanup.enter_context(held(out, is_new=True))
            record = RunRecord(task.stage, config, str(task.data), shards.fingerprint, str(init) if init else None)
            write_record(out, record)
            write_config(out, network_config(config))
            discard_unfinished(out)
            if checkpoint:
                publish_model(out, checkpoint)
            else:
                write_report(out, origins)
            if tokenizer is not None and isinstance(config, ContrastiveRunConfig):
                tokenizer.save(out)
                write_processor(out, config.data.max_text_tokens)
        world.barrier()
        log = None
        if world.is_main:
            wandb_run = start_wandb(config.wandb, out, continued, to_dict(config)) if config.wandb else None
            log = cleanup.enter_context(RunLog(out, task.stage, config.steps, first_step, wandb_run))
            notes = [
                loader_note,
                tokenizer_note,
                *(origin.summary(origins) for origin in origins),
                *notes,
                *damage_notes,
            ]
            introduce(log, config, model, world, notes, first_step)
        writer = cleanup.enter_context(
            CheckpointWriter(
                out,
                world,
                keep=config.keep_checkpoints,
                timeout_seconds=config.timeout_seconds,
                saved_step=first_step,
            )
        )
        finished = _loop(task, objective, shards, loader, updater, writer, first_step, world, log)
        if log and loader.damage.by_source:
            log.say(f"damaged members that were replaced: {loader.damage.summary()}")
        return finished


def _loop(
    task: _Task,
    objective: Objective,
    shards: Shards,
    loader: Loader,
    updater: AnyUpdater,
    writer: CheckpointWriter,
    first_step: int,
    world: World,
    log: RunLog | None,
) -> Finished:
    config, told = task.config, 0

    def save(step: int) -> None:
        counters = updater.counters
        state = {
            "step": step,
            "loader": loader.state_dict(),
            "skipped": counters.skipped,
            "skipped_in_a_row": counters.skipped_in_a_row,
        }
        writer.save(step, updater, state)
        give_back()
        if log:
            with _going_on(log):
                log.draw()

    def tell_failures() -> None:
        nonlocal told
        new, told = writer.failures[told:], len(writer.failures)
        if log and new:
            log.say("; ".join(new))

    compared = False
    meter = Meter(world)
    watch = SkipWatch(config.update.max_skipped_in_a_row)
    flags = LateFlags(world)
    stopped_by, done = None, first_step
    with StopRequest() as stop, listening(meter.stopwatch.span):
        for step in range(first_step, config.steps):
            with span(LOADING):
                loaded = next(loader)
            report, outcome = make_step(updater, objective, loaded.to(world.device), step, config)
            watch.add(step, outcome.skipped_in_a_row, loaded.sample_index)
            done = step + 1
            meter.add(loaded, outcome)
            if log:
                log.advance(done)
            is_logged = done % config.log_every_steps == 0 or done == config.steps
            if step == first_step and not is_logged:
                meter.leave_out()  # kernels are compiled in it
            if is_logged:
                rates = meter.rates()
                if log:
                    line = {name: float(value) for name, value in report.losses.items()}
                    if outcome.sam_loss is not None:
                        line["sam_loss"] = float(outcome.sam_loss)
                    line |= {
                        "learning_rate": outcome.learning_rate,
                        "gradient_norm": float(outcome.gradient_norm),
                        "skipped_steps": updater.counters.skipped,
                    }
                    with _going_on(log):
                        log.record({"step": done} | line | rates)
                    if not compared:
                        log.say(compare_with_plan(config, loaded, world))
                        compared = True
                        meter.restart()
            # Counts reach the ranks at different times, and all must leave at the same step.
            tripped, stopping = flags.exchange(watch.tripped(), stop.received is not None)
            if tripped:
                writer.wait()
                name = f"skipped_batches.rank{world.rank}.json" if world.size > 1 else "skipped_batches.json"
                raise watch.error(task.out / name, shards.key, writer.saved_step)
            if done % config.save_every_steps == 0 or done == config.steps or stopping:
                save(done)
            tell_failures()
            if stopping and done < config.steps:
                stopped_by = stop.received or signal.SIGTERM
                break
        writer.wait()
        tell_failures()
    return Finished(done, stopped_by, tuple(writer.failures), world.is_main)


@contextlib.contextmanager
def _going_on(log: RunLog) -> Iterator[None]:
    """Say that the log could not be written, and go on."""
    try:
        yield
    except OSError as error:
        log.say(f"the log could not be written ({error})")


def make_step(
    updater: AnyUpdater, objective: Objective, batch: AudioTextBatch, step: int, config: Config
) -> tuple[Report, Outcome]:
    """Make a step; SAM's ascent on a part of the batch draws for its clips what the whole batch draws for them."""
    ascending = math.ceil(config.update.ascent_fraction * batch.num_clips)

    def ascent() -> Report:
        with span(PREPARE):
            inputs = objective.prepare(batch.select(0, ascending), step)
        return objective.backward(updater.model, inputs)

    with span(STEP):
        with span(PREPARE):
            inputs = objective.prepare(batch, step)
        return updater.update(
            step,
            lambda: objective.backward(updater.model, inputs),
            ascent if ascending < batch.num_clips else None,
        )
