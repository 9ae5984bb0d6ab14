"""A random subset of each clip's patches: which are kept, which are left to restore, and their pixels.

The subset is a pure function of (seed, step, sample index, number of patches, number kept): the same on every device,
in every micro-batching and on any number of ranks, so a second pass over the same batch sees the same patches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import backend, counter_rng
from .layout import LayoutName, Packed, Patches, PatchPositions, pad, padded_layout
from .log_mel import FREQ_PATCHES, Spectrogram, patch_values

_PAST_ALL = 1 << 62  # sorts after every (hash, index) pair


@dataclass(frozen=True)
class MaskedPatches:
    """``kept`` patches and the ``restore`` patches left out, each clip's in ascending order."""

    kept: Patches
    restore: Patches


def keep_fraction(patch_counts: Tensor, fraction: float) -> Tensor:
    """Number of patches kept of each clip when ``fraction`` of its n stays: round(fraction * n), at least one."""
    kept = (patch_counts.double() * fraction + 0.5).floor().long()
    return kept.clamp_min(1).minimum(patch_counts)


def keep_at_most(patch_counts: Tensor, limit: int) -> Tensor:
    """Number of patches kept of each clip when at most ``limit`` may stay."""
    return patch_counts.clamp_max(limit)


def patch_mask(
    frames: Tensor,
    frame_offsets: Tensor,
    keep_counts: Tensor,
    sample_index: Tensor,
    *,
    seed: int,
    step: int,
    layout: LayoutName = "padded",
) -> MaskedPatches:
    """Keep a uniformly random subset of ``keep_counts`` patches of each clip.

    ``frames`` ``[F, 128]`` and ``frame_offsets`` int64 ``[B + 1]`` (host) are a :class:`Spectrogram`; ``keep_counts``
    int64 ``[B]`` (host); ``sample_index`` int64 ``[B]`` names each clip in the corpus. Clip b's patches are ordered by
    a keyed 32-bit hash with the patch number as tie-break; the first ``keep_counts[b]`` are kept, in ascending order.
    Raises ValueError where more is kept than there is or the numbers of clips differ.
    """
    spectrogram = Spectrogram(frames, frame_offsets)
    if not keep_counts.shape == sample_index.shape == (len(frame_offsets) - 1,):
        raise ValueError(f"patch_mask: expected keep_counts and sample_index of {len(frame_offsets) - 1} clips")
    if bool((keep_counts > spectrogram.patch_counts).any()) or bool((keep_counts < 0).any()):
        raise ValueError("patch_mask: keep_counts must lie between 0 and each clip's number of patches")
    return _dispatch(frames, frame_offsets, keep_counts, sample_index, seed=seed, step=step, layout=layout)


def patch_mask_reference(
    frames: Tensor,
    frame_offsets: Tensor,
    keep_counts: Tensor,
    sample_index: Tensor,
    *,
    seed: int,
    step: int,
    layout: LayoutName,
) -> MaskedPatches:
    """Compute :func:`patch_mask` in PyTorch integers: sort (hash, patch number), keep up to the k-th smallest."""
    spectrogram = Spectrogram(frames, frame_offsets)
    patch_counts = spectrogram.patch_counts
    kept_layout = Packed.from_lengths(keep_counts, frames.device)
    restore_layout = Packed.from_lengths(patch_counts - keep_counts, frames.device)
    all_layout = Packed.from_lengths(patch_counts, frames.device)

    key = counter_rng.fold(counter_rng.root_key(seed, step, frames.device), sample_index.to(frames.device))
    numbers = all_layout.positions
    order = (counter_rng.random_bits(all_layout.spread(key), numbers) << 24) | numbers
    padded_order = torch.where(padded_layout(all_layout).mask, pad(order, all_layout), _PAST_ALL)
    kth = (keep_counts.to(frames.device) - 1).clamp_min(0)
    threshold = padded_order.sort(dim=1).values.gather(1, kth[:, None])[:, 0]
    threshold = torch.where(keep_counts.to(frames.device) > 0, threshold, -1)
    is_kept = order <= all_layout.spread(threshold)

    clip = all_layout.sequence_ids
    kept = _gather(spectrogram, numbers[is_kept], clip[is_kept], kept_layout, layout)
    restore = _gather(spectrogram, numbers[~is_kept], clip[~is_kept], restore_layout, layout)
    return MaskedPatches(kept, restore)


def _gather(spectrogram: Spectrogram, numbers: Tensor, clip: Tensor, packed: Packed, layout: LayoutName) -> Patches:
    positions = PatchPositions(numbers // FREQ_PATCHES, numbers % FREQ_PATCHES, packed)
    values = patch_values(spectrogram, clip, positions)
    if layout == "packed":
        return Patches(values, positions)
    time, freq = pad(positions.time, packed), pad(positions.freq, packed)
    return Patches(pad(values, packed), PatchPositions(time, freq, padded_layout(packed)))


_dispatch = backend.register("patch_mask", reference=patch_mask_reference)
