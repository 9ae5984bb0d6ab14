"""Choosing patches on the device: kernel, launcher and op of :mod:`.choose_patches`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .counter_rng import device_fold, device_random_bits, host_key
from .library import define
from .log_mel import FREQ_PATCHES
from .triton_runtime import jit, launch, next_power_of_two, tl

MAX_PATCHES = 16_384
"""Most patches of a clip: one program holds a clip's words in its registers."""


@jit(do_not_specialize=["root_key", "kept_width", "restore_width", "kept_slots"])
def patch_select_kernel(
    kept_offsets,  # int32 [B + 1]
    restore_offsets,  # int32 [B + 1]
    sample_index,  # int64 [B]
    kept_time,  # int64 [kept_total] or [B, kept_width]; so are the next four, their mask bool
    kept_freq,
    kept_mask,  # None: packed
    restore_time,
    restore_freq,
    restore_mask,
    rows,  # int32 [patches]
    root_key,
    kept_width,
    restore_width,
    kept_slots,
    FREQ_PATCHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Choose the patches of one clip by bisection for the k-th smallest word; write where they lie, and their rows."""
    clip = tl.program_id(0)
    kept_first, restore_first = tl.load(kept_offsets + clip), tl.load(restore_offsets + clip)
    keep = tl.load(kept_offsets + clip + 1) - kept_first
    restore = tl.load(restore_offsets + clip + 1) - restore_first
    number = tl.arange(0, BLOCK)
    kept_start, restore_start = kept_first.to(tl.int64), restore_first.to(tl.int64)
    if kept_mask is not None:
        kept_start, restore_start = clip.to(tl.int64) * kept_width, clip.to(tl.int64) * restore_width
        _pad(kept_time + kept_start, kept_freq + kept_start, kept_mask + kept_start, keep, kept_width, number)
        _pad(
            restore_time + restore_start,
            restore_freq + restore_start,
            restore_mask + restore_start,
            restore,
            restore_width,
            number,
        )
    key = device_fold(root_key.to(tl.uint32), tl.load(sample_index + clip))
    word = tl.where(number < keep + restore, device_random_bits(key, number), 0xFFFFFFFF)

    low, high = tl.full((), 0, tl.uint32), tl.full((), 0xFFFFFFFF, tl.uint32)
    for _ in range(32):
        middle = low + ((high - low) >> 1)
        enough = tl.sum((word <= middle).to(tl.int32)) >= keep
        low, high = tl.where(enough, low, middle + 1), tl.where(enough, middle, high)
    # No two words are equal: under one key they are a bijection of the patch number.
    kept = (number < tl.where(keep > 0, keep + restore, 0)) & (word <= high)
    kept_before = tl.cumsum(kept.to(tl.int32)) - kept.to(tl.int32)

    slot = tl.where(kept, kept_before, number - kept_before)
    is_patch = number < keep + restore
    time = tl.where(kept, kept_time + kept_start, restore_time + restore_start)
    tl.store(time + slot, (number // FREQ_PATCHES).to(tl.int64), is_patch)
    freq = tl.where(kept, kept_freq + kept_start, restore_freq + restore_start)
    tl.store(freq + slot, (number % FREQ_PATCHES).to(tl.int64), is_patch)
    row = tl.where(kept, kept_start, kept_slots + restore_start) + slot
    tl.store(rows + kept_first + restore_first + number, row.to(tl.int32), is_patch)


@jit
def _pad(time, freq, mask, length, width, number):
    """Write one clip's mask, and zeros to its padding slots."""
    padding = (number >= length) & (number < width)
    tl.store(mask + number, number < length, number < width)
    tl.store(time + number, tl.zeros_like(number).to(tl.int64), padding)
    tl.store(freq + number, tl.zeros_like(number).to(tl.int64), padding)


def patch_select(
    kept_offsets: Tensor,
    restore_offsets: Tensor,
    sample_index: Tensor,
    key: list[int],
    kept_shape: Sequence[int],
    restore_shape: Sequence[int],
    patches: int,
    max_patches: int,
) -> tuple[Tensor, ...]:
    """Launch the selection, one program a clip.

    Returns time, frequency and mask (``[0]`` packed) of kept and of restore, and the rows of all ``patches``, int32.
    ``key`` is [seed, step]; the shapes are ``[total]`` packed or ``[B, width]`` padded; ``max_patches`` are a clip's.
    """
    outputs = _select_outputs(
        *(kept_offsets, restore_offsets, sample_index, key, kept_shape, restore_shape, patches, max_patches)
    )
    kept_time, kept_freq, kept_mask, restore_time, restore_freq, restore_mask, rows = outputs
    is_padded = len(kept_shape) == 2
    block = next_power_of_two(max(max_patches, 512))
    launch(
        patch_select_kernel,
        (len(sample_index),),
        *(kept_offsets, restore_offsets, sample_index),
        *(kept_time, kept_freq, kept_mask if is_padded else None),
        *(restore_time, restore_freq, restore_mask if is_padded else None),
        *(rows, host_key(*key), kept_shape[-1], restore_shape[-1], kept_time.numel()),
        FREQ_PATCHES=FREQ_PATCHES,
        BLOCK=block,
        num_warps=max(block // 1024, 1),  # 32 words a thread: few warps, since they meet at every bisection
    )
    return outputs


def _select_outputs(
    kept_offsets: Tensor,
    restore_offsets: Tensor,
    sample_index: Tensor,
    key: list[int],
    kept_shape: Sequence[int],
    restore_shape: Sequence[int],
    patches: int,
    max_patches: int,
) -> tuple[Tensor, ...]:
    outputs: list[Tensor] = []
    for shape in (kept_shape, restore_shape):
        outputs += [sample_index.new_empty(shape) for _ in range(2)]
        outputs.append(sample_index.new_empty(shape if len(shape) == 2 else 0, dtype=torch.bool))
    return *outputs, sample_index.new_empty(patches, dtype=torch.int32)


patch_select_op = define(
    "patch_select(Tensor kept_offsets, Tensor restore_offsets, Tensor sample_index, SymInt[] key, "
    "SymInt[] kept_shape, SymInt[] restore_shape, SymInt patches, SymInt max_patches) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    patch_select,
    _select_outputs,
)
