"""Fine-tuning a T5-family model on pairs of a noisy description and its caption.

Whole epochs, each followed by the loss of the held-out pairs and a checkpoint; the end is where that loss has not
fallen for some epochs. The best epoch becomes a transformers directory with scores.json and losses.png. What an epoch
does is a function of the checkpoint before it, so that a run that was killed ends as one that was not.
"""

import math
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.curate.clean import cleaner_digest
from ...data.curate.parts import unfinished
from ...data.curate.scores import score_captions
from ...data.curate.variants import Cleaner, Dtype, default_dtype
from ...data.draws import mix
from ...data.progress import progress_bar
from ...data.shard_writer import sha256_of
from ...data.shards_index import refuse_full
from ...errors import InputError, RunError
from ...json_file import read_json, write_json
from ..distributed import World
from ..figures import loss_curves
from .finetune_config import Finetuning
from .finetune_pairs import Split, Tokens, epoch_batches, rank_batches, split_pairs, tokenise
from .finetune_state import OPTIMIZER_NAME, STATE_NAME, Learner

SCORES_NAME = "scores.json"


def finetune(
    pairs: Path,
    model: str,
    out: Path,
    config: Finetuning,
    world: World,
    *,
    dtype: Dtype | None = None,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Train `model` on the file `pairs` and write the cleaner to `out`; what scores.json holds, on rank 0.

    Args:
        pairs: pairs.jsonl of `curate label`.
        model: Directory, or name on the hub, of a T5-family model in safetensors.
        out: Directory of the result; must not exist, or be the complete result of the same call.
        config: How.
        world: The ranks, over which weights, gradients and moments are sharded.
        dtype: Of the products, the weights stay float32: bfloat16 by default on a GPU that has it, else float32.
        progress: Show a bar.

    Raises:
        InputError: Pairs, model or `out` are wrong, or a call with other settings was left unfinished at `out`.
        RunError: A gradient or the held-out loss is not finite.
    """
    split = split_pairs(pairs, held_out=config.held_out, seed=config.seed, flagged=config.flagged)
    chosen = dtype or default_dtype(world.device)
    base = cleaner_digest(Path(model)) if Path(model).is_dir() else model
    plan = {"model": base, "pairs": sha256_of(pairs), "dtype": chosen} | asdict(config)
    work = out.resolve().with_name(f".{out.resolve().name}.curating")
    if (out / SCORES_NAME).is_file():
        scores = read_json(out / SCORES_NAME)
        if scores.get("settings") != plan:
            raise InputError(f"{out}: the result of another call; give another directory or remove it")
        if world.is_main:
            shutil.rmtree(work, ignore_errors=True)  # of a run that was killed at its end
        return scores
    refuse_full(out)
    with unfinished(out, plan) if world.is_main else nullcontext():
        world.barrier()
        if not (work / SCORES_NAME).is_file():
            best, history = _train(model, work, split, config, world, chosen, progress)
            if world.is_main:
                scores = {"settings": plan, "epoch": best, "pairs": len(split.train), "left_out": split.counts}
                captions = _captions(_checkpoint(work, best), split, config, world, chosen)
                inputs, wanted = [pair.text for pair in split.held_out], [pair.caption for pair in split.held_out]
                write_json(work / SCORES_NAME, scores | {"history": history} | score_captions(inputs, wanted, captions))
        return _publish(work, out) if world.is_main else None


def _train(
    model: str, work: Path, split: Split, config: Finetuning, world: World, dtype: Dtype, progress: bool
) -> tuple[int, list[dict[str, float]]]:
    """Train to the end, from the last checkpoint where there is one; the best epoch, and the losses of all."""
    latest = _latest(work)
    history: list[dict[str, float]] = [] if latest is None else read_json(latest / STATE_NAME)["history"]
    learner = Learner(
        model if latest is None else str(latest),
        world,
        weight_decay=config.weight_decay,
        checkpointing=config.gradient_checkpointing,
    )
    if latest is not None:
        learner.resume_optimizer(latest)
    train, held_out = (
        tokenise(learner.tokenizer, pairs, config.max_target_tokens) for pairs in (split.train, split.held_out)
    )
    with progress_bar(progress and world.is_main, "pairs") as bar:
        task = bar.add_task("finetune", total=config.epochs * len(train), completed=len(history) * len(train))
        while not _is_over(history, config):
            epoch = len(history)
            total = torch.zeros((), dtype=torch.float64, device=world.device)
            learner.model.train()
            for number, batch in enumerate(epoch_batches(len(train), config.batch_size, config.seed, epoch)):
                step = epoch * math.ceil(len(train) / config.batch_size) + number
                total += _update(learner, train, batch, config, step, dtype)
                bar.advance(task, len(batch))
            train_loss = float(total) / sum(len(each.target) for each in train)
            held_out_loss = _loss(learner, held_out, config, dtype)
            if not math.isfinite(held_out_loss):
                raise RunError(f"the held-out loss of epoch {epoch + 1} is not finite; lower --learning-rate")
            history.append({"train_loss": train_loss, "held_out_loss": held_out_loss})
            learner.save(_checkpoint(work, epoch), {"history": history})
            best = _best(history)
            if world.is_main:
                for other in set(range(epoch)) - {best}:
                    shutil.rmtree(_checkpoint(work, other), ignore_errors=True)
            bar.update(task, description=f"finetune, held-out loss {held_out_loss:.3f}")
    return _best(history), history


def _update(
    learner: Learner, pairs: list[Tokens], batch: list[int], config: Finetuning, step: int, dtype: Dtype
) -> Tensor:
    """One step of AdamW; the loss summed over the batch's tokens, of all ranks, 0-d float64."""
    world = learner.world
    tokens = sum(len(pairs[number].target) for number in batch)
    torch.manual_seed(int(mix(config.seed, step, world.rank)) >> 1)  # dropout
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    for inputs in _shares(learner, pairs, batch, config):
        loss = _summed_loss(learner, inputs, dtype)
        # Sharded gradients are means over ranks; what is wanted is the mean over the batch's tokens.
        (loss * (world.size / tokens)).backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(learner.model.parameters(), config.clip_norm)
    if not math.isfinite(float(norm)):
        raise RunError(f"the gradient of update {step} is not finite; lower --learning-rate, or give --dtype float32")
    for group in learner.optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    return world.sum_(total)


@torch.no_grad()
def _loss(learner: Learner, pairs: list[Tokens], config: Finetuning, dtype: Dtype) -> float:
    """Mean loss of a token of the pairs, of all ranks."""
    learner.model.eval()
    total = torch.zeros((), dtype=torch.float64, device=learner.world.device)
    for inputs in _shares(learner, pairs, list(range(len(pairs))), config):
        total += _summed_loss(learner, inputs, dtype)
    return float(learner.world.sum_(total)) / sum(len(each.target) for each in pairs)


def _shares(learner: Learner, pairs: list[Tokens], numbers: list[int], config: Finetuning) -> Any:
    return rank_batches(
        pairs,
        numbers,
        rank=learner.world.rank,
        ranks=learner.world.size,
        size=config.micro_batch_size,
        pad=learner.tokenizer.pad_token_id,
        device=learner.world.device,
    )


def _summed_loss(learner: Learner, inputs: dict[str, Tensor], dtype: Dtype) -> Tensor:
    """Cross-entropy summed over the labels of a micro-batch, 0-d float32."""
    device = learner.world.device.type
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = learner.model(**inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), inputs["labels"].flatten(), reduction="sum")


def _captions(folder: Path, split: Split, config: Finetuning, world: World, dtype: Dtype) -> list[str]:
    cleaner = Cleaner(folder, world.device, dtype)
    texts = [pair.text for pair in split.held_out]
    return cleaner.greedy(texts, max_new_tokens=config.max_target_tokens, batch_tokens=16_384)


def _is_over(history: list[dict[str, float]], config: Finetuning) -> bool:
    return len(history) >= config.epochs or (bool(history) and len(history) - 1 - _best(history) >= config.patience)


def _best(history: list[dict[str, float]]) -> int:
    return min(range(len(history)), key=lambda epoch: history[epoch]["held_out_loss"])


def _checkpoint(work: Path, epoch: int) -> Path:
    return work / f"checkpoint-{epoch:04d}"


def _latest(work: Path) -> Path | None:
    return max((path for path in work.glob("checkpoint-*") if path.suffix != ".tmp"), default=None)


def _publish(work: Path, out: Path) -> dict[str, Any]:
    """Make the best checkpoint the result; whatever step a kill comes after, a further call does the rest."""
    scores = read_json(work / SCORES_NAME)
    folder = _checkpoint(work, scores["epoch"])
    if folder.is_dir():
        (folder / OPTIMIZER_NAME).unlink(missing_ok=True)
        (folder / STATE_NAME).unlink(missing_ok=True)
        series = {name: [epoch[name] for epoch in scores["history"]] for name in ("train_loss", "held_out_loss")}
        loss_curves(folder / "losses.png", range(1, len(scores["history"]) + 1), series, "Cleaner, loss of a token")
        write_json(folder / SCORES_NAME, scores)
        if out.is_dir():
            out.rmdir()
        folder.rename(out)
    shutil.rmtree(work)
    return scores
