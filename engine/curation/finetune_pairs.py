"""The pairs that a cleaner learns from, those held out, and batches of them that every rank can tell."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.curate.noisy_text import digest_of
from ...data.curate.pairs import Pair, read_pairs
from ...data.curate.variants import MAX_INPUT_TOKENS, padded
from ...data.draws import permutation
from ...errors import InputError

IGNORED = -100
"""Label of a token that has no loss."""


@dataclass(frozen=True)
class Split:
    """Pairs for learning and for scoring; no text is in both."""

    train: list[Pair]
    held_out: list[Pair]
    counts: dict[str, int]
    """What was left out, by reason."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A pair as token ids, both with the tokenizer's end."""

    input: list[int]
    target: list[int]


def split_pairs(path: Path, *, held_out: float, seed: int, flagged: bool) -> Split:
    """The pairs of a file that hold a caption, without flags unless `flagged`; equal pairs once.

    A text is held out by a digest of it, whatever other pairs there are. Raises `InputError` where either side is
    empty.
    """
    counts: Counter[str] = Counter()
    train: dict[tuple[str, str], Pair] = {}
    held: dict[tuple[str, str], Pair] = {}
    for pair in read_pairs(path):
        if pair.outcome != "caption":
            counts[pair.outcome] += 1
        elif pair.flags and not flagged:
            counts["flagged"] += 1
        else:
            side = held if int(digest_of(seed, pair.text)[:12], 16) < held_out * 16**12 else train
            counts["repeated"] += (pair.text, pair.caption) in side
            side[pair.text, pair.caption] = pair
    if not train or not held:
        raise InputError(
            f"{path}: {len(train)} pairs to learn from and {len(held)} held out; expected some of each: "
            "give more pairs, another --held-out or --seed, or --flagged"
        )
    return Split(list(train.values()), list(held.values()), {name: n for name, n in sorted(counts.items()) if n})


def tokenise(tokenizer: Any, pairs: list[Pair], max_target_tokens: int) -> list[Tokens]:
    """Token ids of each pair, cut at `MAX_INPUT_TOKENS` and `max_target_tokens`."""
    clean = [[text.encode("utf-8", "replace").decode() for text in (pair.text, pair.caption)] for pair in pairs]
    inputs = tokenizer([text for text, _ in clean], truncation=True, max_length=MAX_INPUT_TOKENS)["input_ids"]
    targets = tokenizer(text_target=[text for _, text in clean], truncation=True, max_length=max_target_tokens)
    return [Tokens(*each) for each in zip(inputs, targets["input_ids"], strict=True)]


def epoch_batches(count: int, size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Numbers of pairs in an order that is a function of seed and epoch, `size` at a time; the last may be smaller."""
    order = permutation(count, seed, epoch).tolist()
    yield from (order[start : start + size] for start in range(0, count, size))


def rank_batches(
    pairs: list[Tokens], numbers: list[int], *, rank: int, ranks: int, size: int, pad: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """This rank's share of the pairs `numbers`, `size` at a time: input_ids, attention_mask and labels, int64.

    Every rank gets as many batches; where there is nothing left for it, one without any label.
    """
    slots = -(-len(numbers) // ranks)
    mine = numbers[rank::ranks]
    for start in range(0, slots, size):
        chosen = [pairs[number] for number in mine[start : start + size]]
        chosen = chosen or [Tokens(pairs[numbers[0]].input[:1], [IGNORED])]
        targets = padded([each.target for each in chosen], IGNORED, device)["input_ids"]
        yield padded([each.input for each in chosen], pad, device) | {"labels": targets}
