"""A random choice among each clip's patches: which are kept, which are left to restore, and where both lie.

The choice is a pure function of (seed, step, sample index, number of patches, number kept): the same on every device,
in every micro-batching and on any number of ranks, so a second pass over the same batch sees the same patches. It needs
no pixel, so :mod:`.log_mel_patches` computes the patches where they belong.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend, counter_rng
from .checks import check_device, check_dtype, check_shape
from .layout import Layout, LayoutName, Packed, Padded, PatchPositions, pad, padded_layout
from .log_mel import FREQ_PATCHES
from .patch_select_triton import MAX_PATCHES, patch_select_op
from .spec import Case, ErrorBudget, Inputs, MakeInputs, Spec, Work

PAST_ALL = 1 << 62
"""Sorts after every (hash, patch number) pair."""


@dataclass(frozen=True)
class ChosenPatches:
    """Places of the ``kept`` patches and of those left to ``restore``, each clip's in ascending order.

    ``rows`` int32 ``[patches]``: the patches of all clips, one clip after another, by time and then frequency; each
    one's row among the slots of kept and, behind them, those of restore. Padding slots are nobody's.
    """

    kept: PatchPositions
    restore: PatchPositions
    rows: Tensor


def keep_fraction(patch_counts: Tensor, fraction: float) -> Tensor:
    """Number of patches kept of each clip when ``fraction`` of its n stays: round(fraction * n), at least one."""
    kept = (patch_counts.double() * fraction + 0.5).floor().long()
    return kept.clamp_min(1).minimum(patch_counts)


def keep_at_most(patch_counts: Tensor, limit: int) -> Tensor:
    """Number of patches kept of each clip when at most ``limit`` may stay."""
    return patch_counts.clamp_max(limit)


def choose_patches(
    sample_index: Tensor,
    patch_counts: Tensor,
    keep_counts: Tensor,
    *,
    seed: int,
    step: int,
    layout: LayoutName = "padded",
) -> ChosenPatches:
    """Choose a uniformly random subset of ``keep_counts`` of the ``patch_counts`` patches of each clip.

    ``sample_index`` int64 ``[B]`` names each clip in the corpus; the result lies on its device. Both counts are int64
    ``[B]`` on the host. Clip b's patches are ordered by a keyed 32-bit hash with the patch number as tie-break; the
    first ``keep_counts[b]`` are kept. Raises ValueError on shapes or dtypes that do not fit, where more is kept than
    there is and, fused, on a clip of more than 16 384 patches.
    """
    host = {"patch_counts": patch_counts, "keep_counts": keep_counts}
    for name, tensor in {"sample_index": sample_index, **host}.items():
        check_dtype("choose_patches", name, tensor, (torch.int64,))
        check_shape("choose_patches", name, tensor, (sample_index.shape[0],))
    check_device("choose_patches", "the host's arguments", torch.device("cpu"), **host)
    check_keep_counts("choose_patches", patch_counts, keep_counts)
    return _dispatch(sample_index, patch_counts, keep_counts, seed=seed, step=step, layout=layout)


def check_keep_counts(op: str, patch_counts: Tensor, keep_counts: Tensor) -> None:
    """Refuse to keep more patches than there are, or fewer than none."""
    impossible = (keep_counts > patch_counts) | (keep_counts < 0)
    if bool(impossible.any()):
        clip = int(impossible.nonzero()[0])
        kept, there = int(keep_counts[clip]), int(patch_counts[clip])
        raise ValueError(f"{op}: keep_counts[{clip}] is {kept}, expected 0 to the clip's {there} patches")


def choose_patches_reference(
    sample_index: Tensor,
    patch_counts: Tensor,
    keep_counts: Tensor,
    *,
    seed: int,
    step: int,
    layout: LayoutName = "padded",
) -> ChosenPatches:
    """Compute :func:`choose_patches` in PyTorch integers: sort (hash, number), keep up to the k-th smallest."""
    device = sample_index.device
    kept_layout = Packed.from_lengths(keep_counts, device)
    restore_layout = Packed.from_lengths(patch_counts - keep_counts, device)
    all_layout = Packed.from_lengths(patch_counts, device)

    key = counter_rng.fold(counter_rng.root_key(seed, step, device), sample_index)
    numbers = all_layout.positions
    order = (counter_rng.random_bits(all_layout.spread(key), numbers) << 24) | numbers
    padded_order = torch.where(padded_layout(all_layout).mask, pad(order, all_layout), PAST_ALL)
    keep = keep_counts.to(device)
    threshold = padded_order.sort(dim=1).values.gather(1, (keep - 1).clamp_min(0)[:, None])[:, 0]
    is_kept = order <= all_layout.spread(torch.where(keep > 0, threshold, -1))

    kept, kept_slots = _places(numbers[is_kept], kept_layout, layout)
    restore, restore_slots = _places(numbers[~is_kept], restore_layout, layout)
    rows = torch.empty(all_layout.total, dtype=torch.int32, device=device)
    rows[is_kept] = kept_slots.int()
    rows[~is_kept] = (restore_slots + kept.time.numel()).int()
    return ChosenPatches(kept, restore, rows)


def _places(numbers: Tensor, packed: Packed, layout: LayoutName) -> tuple[PatchPositions, Tensor]:
    """Return where the patches called ``numbers`` lie, and the slot of each in ``layout``."""
    time, freq = numbers // FREQ_PATCHES, numbers % FREQ_PATCHES
    if layout == "packed":
        return PatchPositions(time, freq, packed), torch.arange(packed.total, device=numbers.device)
    return PatchPositions(pad(time, packed), pad(freq, packed), padded_layout(packed)), packed.padded_slots


def choose_patches_fused(
    sample_index: Tensor,
    patch_counts: Tensor,
    keep_counts: Tensor,
    *,
    seed: int,
    step: int,
    layout: LayoutName = "padded",
    passenger: Tensor | None = None,
) -> tuple[ChosenPatches, Packed, Packed, Tensor]:
    """Compute :func:`choose_patches` by the kernel; the packed layouts of kept and of restore with it.

    ``passenger``, integers ``[B + 1]`` on the host, goes to the device in the same copy: last of the result, int32
    (zeros without one).
    """
    device, batch_size = sample_index.device, len(sample_index)
    lengths = torch.stack((patch_counts, keep_counts, patch_counts - keep_counts))
    max_patches, max_kept, max_restore = F.pad(lengths, (0, 1)).amax(dim=1).tolist()  # the zero is for an empty batch
    if max_patches > MAX_PATCHES:
        clip = int(patch_counts.argmax())
        raise ValueError(f"choose_patches: clip {clip} has {max_patches} patches, expected at most {MAX_PATCHES}")

    # One copy to the device; its rows begin at multiples of 16 bytes, as a tensor of its own would.
    host = torch.zeros((3, -(-(batch_size + 1) // 4) * 4), dtype=torch.int32)
    host[:2, 1 : batch_size + 1] = lengths[1:].cumsum(dim=1)
    if passenger is not None:
        host[2, : batch_size + 1] = passenger
    *offsets, arrived = host.to(device, non_blocking=True)[:, : batch_size + 1].unbind()
    kept = Packed(offsets[0], max_kept, int(host[0, batch_size]))
    restore = Packed(offsets[1], max_restore, int(host[1, batch_size]))
    shapes = [
        (packed.total,) if layout == "packed" else (batch_size, packed.padded_width) for packed in (kept, restore)
    ]
    kept_time, kept_freq, kept_mask, restore_time, restore_freq, restore_mask, rows = patch_select_op(
        *(*offsets, sample_index.contiguous(), [seed, step], *shapes, kept.total + restore.total, max_patches),
    )
    kept_layout: Layout = kept if layout == "packed" else Padded(kept_mask)
    restore_layout: Layout = restore if layout == "packed" else Padded(restore_mask)
    chosen = ChosenPatches(
        PatchPositions(kept_time, kept_freq, kept_layout),
        PatchPositions(restore_time, restore_freq, restore_layout),
        rows,
    )
    return chosen, kept, restore, arrived


def _choose_patches_cuda(*counts: Tensor, **options: Any) -> ChosenPatches:
    return choose_patches_fused(*counts, **options)[0]


_dispatch = backend.register("choose_patches", reference=choose_patches_reference, fused={"cuda": _choose_patches_cuda})


def _clips(
    patches: list[int], keep: list[int] | None = None, *, limit: int = 0, layout: LayoutName = "packed"
) -> MakeInputs:
    """Clips of so many patches that keep so many, at most ``limit`` where that is given, or a fifth."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        counts = torch.tensor(patches, dtype=torch.int64)
        chosen = keep_at_most(counts, limit) if limit else keep_fraction(counts, 0.2)
        return {
            "sample_index": torch.randint(2**40, (len(patches),), generator=generator).to(device),
            "patch_counts": counts,
            "keep_counts": chosen if keep is None else torch.tensor(keep, dtype=torch.int64),
            "seed": 2**40 + 3,
            "step": 7,
            "layout": layout,
        }

    return make


def _forward_work(inputs: Inputs) -> Work:
    """Of every patch its time, frequency and row are written."""
    return Work(bytes=int(inputs["patch_counts"].sum()) * 20)


SPEC = Spec(
    name="choose_patches",
    op=choose_patches,
    reference=choose_patches_reference,
    cases=(
        Case("packed", _clips([16, 0, 8, 80])),
        Case("padded", _clips([16, 0, 8, 80], layout="padded")),
        Case("all, none, one", _clips([16, 24, 8], [16, 0, 1])),
        Case("all, none, one, padded", _clips([16, 24, 8], [16, 0, 1], layout="padded")),
        Case("no patch", _clips([0, 0], layout="padded")),
        Case("no clip", _clips([], layout="padded")),
        Case("more than one block of words", _clips([544, 8])),
        Case("stage 1", _clips([752] * 512), paper=True),
        Case("stage 2", _clips([1496] * 256, limit=512), paper=True),
    ),
    forward=_forward_work,
    budget=ErrorBudget(factor=1.0, floor_ulps=0.0),
    sizes_from_host=True,
)
