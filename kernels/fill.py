"""Packed micro-batches of one size: sequences of dummy tokens at the end fill up what the data leaves free.

Every tensor then has the same shape whatever the data, and ``max_len`` is the same too: kernels are launched alike,
nothing is compiled again and the allocator finds its blocks. A dummy is a sequence like any other, so no real token
sees it; whose loss and embedding nobody uses has a gradient of exactly zero, and so has every weight from it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import Layout, Packed, Padded, Patches, PatchPositions


@dataclass(frozen=True)
class Budget:
    """Sizes of a packed micro-batch: ``tokens`` in ``sequences`` (dummies included), none longer than ``max_len``."""

    tokens: int
    sequences: int
    max_len: int


def budgets(clips: int, *sizes: tuple[int, int]) -> tuple[Budget, ...]:
    """Return budgets for up to ``clips`` clips, of the (tokens, longest sequence) given, all of as many sequences.

    Beside the clips there is room for the dummies of a micro-batch that has no token of its own.
    """
    dummies = max(-(-tokens // max(longest, 1)) for tokens, longest in sizes)
    return tuple(Budget(tokens, clips + dummies, max(longest, 1)) for tokens, longest in sizes)


def fill_layout(packed: Packed, budget: Budget) -> Packed:
    """Append empty sequences, then dummies of up to ``max_len`` tokens, until sequences and tokens are the budget's.

    Raises ValueError where ``packed`` exceeds the budget, or its sequences leave too few for the dummies.
    """
    if packed.total > budget.tokens or packed.max_len > budget.max_len:
        found = f"{packed.total} tokens, {packed.max_len} in the longest sequence"
        raise ValueError(f"fill_layout: packed has {found}, expected at most {budget.tokens} and {budget.max_len}")
    missing, free = budget.tokens - packed.total, budget.sequences - packed.batch_size
    if missing > free * budget.max_len:
        needed = -(-missing // budget.max_len)
        raise ValueError(f"fill_layout: budget has {free} sequences beside packed's, expected {needed} for the fill")
    behind = torch.arange(free - 1, -1, -1) * budget.max_len  # dummy tokens that fit after each new sequence
    ends = (packed.total + (missing - behind).clamp_min(0)).to(torch.int32)
    cu_seqlens = torch.cat((packed.cu_seqlens, ends.to(packed.cu_seqlens.device, non_blocking=True)))
    return Packed(cu_seqlens, budget.max_len, budget.tokens)


def fill_rows(rows: Tensor, size: int, value: float = 0) -> Tensor:
    """Append rows of ``value`` to ``rows`` ``[n, ...]`` until there are ``size``."""
    return F.pad(rows, (*[0] * (2 * rows.dim() - 1), size - len(rows)), value=value)


def fill_patches(patches: Patches, budget: Budget) -> Patches:
    """Fill packed ``patches`` up with patches of zeros at time and freq 0; raises as :func:`fill_layout`."""
    positions = patches.positions
    if not isinstance(positions.layout, Packed):
        raise ValueError("fill_patches: patches are Padded, expected Packed")
    layout = fill_layout(positions.layout, budget)
    time, freq = (fill_rows(numbers, budget.tokens) for numbers in (positions.time, positions.freq))
    return Patches(fill_rows(patches.values, budget.tokens), PatchPositions(time, freq, layout))


def real_tokens(layout: Layout, total: int) -> Tensor:
    """Return where the ``total`` tokens of the data lie, bool ``[B, L]`` or ``[T]``: neither padding nor fill."""
    if isinstance(layout, Padded):
        return layout.mask
    return torch.arange(layout.total, device=layout.cu_seqlens.device) < total
