"""The training loop: the same for every stage; a run killed at any moment continues bit-identically."""

import contextlib
import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..data.batch import AudioTextBatch
from ..data.dali import choose_decoder
from ..data.loader import Loader, LoaderConfig
from ..data.shards import Shards
from ..data.tokens import TOKENIZER_FILE, CaptionTokenizer, resolve_tokenizer
from ..errors import InputError, RunError
from ..kernels import backend
from ..kernels.spans import listening, span
from ..models.config_io import to_dict
from ..models.model_directory import MODEL_FILE, write_config, write_processor
from ..models.weights import load_tensors
from .build import AnyUpdater, Config, build_model, build_objective, build_updater
from .checkpoint import (
    OPTIMIZER_FILE,
    STATE_FILE,
    checkpoints,
    discard_unfinished,
    latest_checkpoint,
    load_state,
    save_checkpoint,
)
from .config import ContrastiveRunConfig, MaeRunConfig, Stage
from .distributed import World, join_world
from .initialisation import initialise, tokenizer_spec, write_report
from .objective import Objective, Report
from .peak_memory import compare_with_plan
from .phases import PREPARE, STEP
from .run_directory import (
    RunRecord,
    check_new,
    check_resumable,
    is_run,
    publish_model,
    read_record,
    write_record,
)
from .skip_watch import SkipWatch
from .stop_request import StopRequest
from .telemetry import Meter, RunLog
from .update import Counters, Outcome
from .weights_and_biases import check_wandb, start_wandb


@dataclass(frozen=True)
class Finished:
    """How :func:`train` ended: steps done, and the signal that stopped it early, if any."""

    steps: int
    stopped_by: signal.Signals | None


def train(
    stage: Stage, config: Config, data: Path, out: Path, *, init: Path | None = None, resume: bool = False
) -> Finished:
    """Train a run in directory ``out`` on the shards in ``data``.

    ``init`` is a model directory whose weights start this run (see :func:`~.initialisation.initialise`). ``resume``
    continues what is in ``out``, or starts where nothing is. Raises InputError before anything is written where the
    input is wrong, RunError where the gradient stays non-finite.
    """
    check_wandb(config.wandb)
    record = read_record(out) if resume and is_run(out) else None
    if record is not None:
        check_resumable(out, record, stage, config, init)
        init = Path(record.init) if record.init else None
    else:
        check_new(out)
    # Joining waits for all ranks: every one has looked at ``out`` before the first writes to it.
    world = join_world(config.device)
    try:
        if config.batch_size % world.size:
            raise InputError(
                f"batch_size {config.batch_size} is not divisible by {world.size} ranks; change batch_size"
            )
        with Shards.open(data) as shards, backend.use_backend(config.backend):
            if record is not None and record.data_fingerprint != shards.fingerprint:
                raise InputError(f"{data}: is not the data that {out} was started with ({record.data})")
            return _train(stage, config, shards, data, out, init, record is not None, world)
    finally:
        world.close()


def _train(
    stage: Stage,
    config: Config,
    shards: Shards,
    data: Path,
    out: Path,
    init: Path | None,
    continued: bool,
    world: World,
) -> Finished:
    tokenizer, tokenizer_note = _tokenizer(config, shards, init, out if continued else None)
    with contextlib.ExitStack() as cleanup:
        decoder, loader_note = choose_decoder(config.data.loader, world.device.type, config.data.workers)
        loader = Loader(shards, loader_config(config, world.device), tokenizer, world.rank, world.size, decoder)
        cleanup.callback(loader.close)
        objective = build_objective(config, world)
        model = build_model(config)
        has_checkpoint = continued and bool(checkpoints(out))
        origins = [] if has_checkpoint else initialise(model, config, init)
        updater = build_updater(model.to(world.device), config, world)
        first_step = _restore(out, updater, loader) if has_checkpoint else 0

        if world.is_main:
            write_record(out, RunRecord(stage, config, str(data), shards.fingerprint, str(init) if init else None))
            write_config(out, config.model)
            discard_unfinished(out)
            if has_checkpoint:
                publish_model(out, latest_checkpoint(out))
            else:
                write_report(out, origins)
            if tokenizer is not None and isinstance(config, ContrastiveRunConfig):
                tokenizer.save(out)
                write_processor(out, config.data.max_text_tokens)
        world.barrier()
        log = None
        if world.is_main:
            wandb_run = start_wandb(config.wandb, out, continued, to_dict(config)) if config.wandb else None
            log = cleanup.enter_context(RunLog(out, stage, config.steps, first_step, wandb_run))
            notes = [loader_note, tokenizer_note, *(origin.summary(origins) for origin in origins)]
            _introduce(log, config, model, world, notes, first_step)
        finished = _loop(config, objective, shards, loader, updater, out, first_step, world, log)
        if log and loader.damage.by_source:
            log.say(f"damaged members that were replaced: {loader.damage.summary()}")
        return finished


def _loop(
    config: Config,
    objective: Objective,
    shards: Shards,
    loader: Loader,
    updater: AnyUpdater,
    out: Path,
    first_step: int,
    world: World,
    log: RunLog | None,
) -> Finished:
    def save(step: int) -> None:
        if world.is_main:
            counters = updater.counters
            state = {
                "step": step,
                "loader": loader.state_dict(),
                "skipped": counters.skipped,
                "skipped_in_a_row": counters.skipped_in_a_row,
            }
            weights, tensors = updater.weights(), updater.state_tensors()
            saved = save_checkpoint(out, step, weights, tensors, state, keep=config.keep_checkpoints)
            publish_model(out, saved)
        if log:
            log.draw()
        world.barrier()

    saved_step = first_step
    compared = False
    meter = Meter(world)
    watch = SkipWatch(config.update.max_skipped_in_a_row)
    with StopRequest() as stop, listening(meter.stopwatch.span):
        for step in range(first_step, config.steps):
            loaded = next(loader)
            report, outcome = make_step(updater, objective, loaded.to(world.device), step, config)
            watch.add(step, outcome.skipped_in_a_row, loaded.sample_index)
            done = step + 1
            meter.add(loaded, outcome)
            if log:
                log.advance(done)
            if done % config.log_every_steps == 0 or done == config.steps:
                rates = meter.rates(loader.wait_seconds)
                if log:
                    line = {name: float(value) for name, value in report.losses.items()}
                    if outcome.sam_loss is not None:
                        line["sam_loss"] = float(outcome.sam_loss)
                    line |= {
                        "learning_rate": outcome.learning_rate,
                        "gradient_norm": float(outcome.gradient_norm),
                        "skipped_steps": updater.counters.skipped,
                    }
                    log.record({"step": done} | line | rates)
                    if not compared:
                        log.say(compare_with_plan(config, loaded, world))
                        compared = True
                        meter.restart()
            # Counts reach the ranks at different times, and all must leave at the same step.
            tripped, stopping = world.any_of(watch.tripped(), stop.received is not None)
            if tripped:
                raise _not_finite(watch, out, shards, world, saved_step)
            if done % config.save_every_steps == 0 or done == config.steps or stopping:
                save(done)
                saved_step = done
            if stopping and done < config.steps:
                return Finished(done, stop.received or signal.SIGTERM)
    return Finished(config.steps, None)


def _not_finite(watch: SkipWatch, out: Path, shards: Shards, world: World, saved_step: int) -> RunError:
    """Save the batches whose gradients were not finite; returns what ends the run."""
    path = out / (f"skipped_batches.rank{world.rank}.json" if world.size > 1 else "skipped_batches.json")
    watch.save(path, shards.key)
    return RunError(
        f"the gradient was not finite for {watch.in_a_row} steps in a row; the keys of their clips are in {path}, and "
        f"the newest checkpoint is of step {saved_step}. Lower update.learning_rate or check the data"
    )


def loader_config(config: Config, device: torch.device) -> LoaderConfig:
    """Return how a run's clips become batches."""
    text = config.data if isinstance(config, ContrastiveRunConfig) else None
    return LoaderConfig(
        batch_size=config.batch_size,
        crop_seconds=config.data.crop_seconds if isinstance(config, MaeRunConfig) else None,
        fixed_seconds=config.data.fixed_seconds or None,
        max_text_tokens=text.max_text_tokens if text else None,
        synthetic_probability=text.synthetic_probability if text else 0.0,
        seed=config.seed,
        workers=config.data.workers,
        prefetch_batches=config.data.prefetch_batches,
        max_bad_share=config.data.max_bad_share,
        pin_memory=device.type == "cuda",
    )


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


def _tokenizer(
    config: Config, shards: Shards, init: Path | None, continued_run: Path | None
) -> tuple[CaptionTokenizer | None, str]:
    if not isinstance(config, ContrastiveRunConfig):
        return None, ""
    if not shards.has_captions:
        raise InputError("the shards have no captions, stage 2 needs them: pack with --captions captions.csv")
    if continued_run is not None and (continued_run / TOKENIZER_FILE).is_file():
        return CaptionTokenizer.load(continued_run), "tokenizer: the run's own"
    return resolve_tokenizer(tokenizer_spec(config, init), shards.captions(), config.model.text.vocab_size)


def _restore(out: Path, updater: AnyUpdater, loader: Loader) -> int:
    checkpoint = latest_checkpoint(out)
    state = load_state(checkpoint)
    updater.load_weights(load_tensors(checkpoint / MODEL_FILE), checkpoint / MODEL_FILE)
    updater.load_state_tensors(load_tensors(checkpoint / OPTIMIZER_FILE), checkpoint / OPTIMIZER_FILE)
    try:
        updater.counters = Counters(int(state["skipped"]), int(state["skipped_in_a_row"]))
        loader.load_state_dict(state["loader"])
        return int(state["step"])
    except InputError as error:
        raise InputError(f"{checkpoint / STATE_FILE}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{checkpoint / STATE_FILE}: is damaged ({error!r}); delete this checkpoint to use an older one"
        ) from None


def _introduce(log: RunLog, config: Config, model: nn.Module, world: World, notes: list[str], first_step: int) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    log.say(
        f"{parameters / 1e6:.2f} M parameters, batch {config.batch_size} on {world.size} x {world.device}, "
        f"{config.precision}, {config.layout} layout, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    paths = backend.choices(world.device)
    for path in ("fused", "reference"):
        names = [choice.op for choice in paths if choice.path == path]
        if names:
            log.say(f"{path} path: {', '.join(names)}")
    for note in filter(None, notes):
        log.say(note)
    if first_step:
        log.say(f"continuing from step {first_step}")
