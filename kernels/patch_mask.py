"""A random subset of each clip's patches: which are kept, which are left to restore, and their pixels.

The subset is a pure function of (seed, step, sample index, number of patches, number kept): the same on every device,
in every micro-batching and on any number of ranks, so a second pass over the same batch sees the same patches.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend, counter_rng
from .checks import FUSED_DTYPES, check_device, check_dtype, check_shape
from .layout import Layout, LayoutName, Packed, Padded, Patches, PatchPositions, pad, padded_layout, unpad
from .log_mel import FREQ_PATCHES, MEL_BANDS, PATCH_PIXELS, Spectrogram, patch_values
from .patch_gather_triton import patch_gather_bwd_op, patch_gather_fwd_op
from .patch_select_triton import MAX_PATCHES, patch_select_op
from .spec import Case, ErrorBudget, Inputs, MakeInputs, Spec, Work, draw_normal

_PAST_ALL = 1 << 62  # sorts after every (hash, index) pair


@dataclass(frozen=True)
class MaskedPatches:
    """``kept`` patches and the ``restore`` patches left out, each clip's in ascending order."""

    kept: Patches
    restore: Patches


class PatchGatherFunction(torch.autograd.Function):
    """Joins the gather and its way back; frames ``[F, 128]`` in, pixels of kept and of restore out."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, *places: Any) -> Any:
        """Gather; the way back needs the places only."""
        *tensors, ctx.max_kept, ctx.max_restore = places
        ctx.num_frames = frames.shape[0]
        ctx.save_for_backward(*tensors)
        return patch_gather_fwd_op(frames, *places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override]
        """Put every pixel's gradient back into its frame."""
        d_kept, d_restore = (gradient.contiguous() for gradient in gradients)
        places = (*ctx.saved_tensors, ctx.max_kept, ctx.max_restore)
        return patch_gather_bwd_op(d_kept, d_restore, ctx.num_frames, *places), *[None] * len(places)


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
    Pixels have the dtype of ``frames``: among them are stage 1's targets, which half precision would blur, and
    ``patch_embed`` rounds what it reads. Raises ValueError on shapes, dtypes or devices that do not fit, on offsets
    that do not rise from 0 to F, where more is kept than there is and, fused, on a clip of more than 16 384 patches.
    """
    check_shape("patch_mask", "frames", frames, (frames.shape[0], MEL_BANDS))
    batch_size = len(frame_offsets) - 1
    host = {"frame_offsets": frame_offsets, "keep_counts": keep_counts}
    for name, tensor in {**host, "sample_index": sample_index}.items():
        check_dtype("patch_mask", name, tensor, (torch.int64,))
        check_shape("patch_mask", name, tensor, (batch_size + (name == "frame_offsets"),))
    check_device("patch_mask", "the host's arguments", torch.device("cpu"), **host)
    if sample_index.device.type != "cpu":
        check_device("patch_mask", "frames", frames.device, sample_index=sample_index)
    if [int(frame_offsets[0]), int(frame_offsets[-1])] != [0, len(frames)] or bool((frame_offsets.diff() < 0).any()):
        raise ValueError(f"patch_mask: frame_offsets must rise from 0 to the {len(frames)} frames")
    patch_counts = Spectrogram(frames, frame_offsets).patch_counts
    impossible = (keep_counts > patch_counts) | (keep_counts < 0)
    if bool(impossible.any()):
        clip = int(impossible.nonzero()[0])
        kept, there = int(keep_counts[clip]), int(patch_counts[clip])
        raise ValueError(f"patch_mask: keep_counts[{clip}] is {kept}, expected 0 to the clip's {there} patches")
    return _dispatch(frames, frame_offsets, keep_counts, sample_index, seed=seed, step=step, layout=layout)


def patch_mask_reference(
    frames: Tensor,
    frame_offsets: Tensor,
    keep_counts: Tensor,
    sample_index: Tensor,
    *,
    seed: int,
    step: int,
    layout: LayoutName = "padded",
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


def _patch_mask_cuda(
    frames: Tensor,
    frame_offsets: Tensor,
    keep_counts: Tensor,
    sample_index: Tensor,
    *,
    seed: int,
    step: int,
    layout: LayoutName,
) -> MaskedPatches:
    check_dtype("patch_mask", "frames", frames, (*FUSED_DTYPES, torch.float64))
    patch_counts = Spectrogram(frames, frame_offsets).patch_counts
    lengths = torch.stack((patch_counts, keep_counts, patch_counts - keep_counts))
    max_patches, max_kept, max_restore = F.pad(lengths, (0, 1)).amax(dim=1).tolist()  # the zero is for an empty batch
    if max_patches > MAX_PATCHES:
        clip = int(patch_counts.argmax())
        raise ValueError(f"patch_mask: clip {clip} has {max_patches} patches, expected at most {MAX_PATCHES}")

    # One copy to the device; its rows begin at multiples of 16 bytes, as a tensor of its own would.
    batch_size = len(keep_counts)
    host = torch.zeros((3, -(-(batch_size + 1) // 4) * 4), dtype=torch.int32)
    host[0, : batch_size + 1] = frame_offsets
    host[1:, 1 : batch_size + 1] = lengths[1:].cumsum(dim=1)
    offsets = host.to(frames.device, non_blocking=True)[:, : batch_size + 1].unbind()
    kept = Packed(offsets[1], max_kept, int(host[1, batch_size]))
    restore = Packed(offsets[2], max_restore, int(host[2, batch_size]))
    shapes = [
        (packed.total,) if layout == "packed" else (batch_size, packed.padded_width) for packed in (kept, restore)
    ]
    sample_index = sample_index.to(frames.device, non_blocking=True)
    kept_time, kept_freq, kept_mask, restore_time, restore_freq, restore_mask = patch_select_op(
        *offsets[1:], sample_index.contiguous(), [seed, step], *shapes, max_patches
    )
    places = (*offsets, kept_time, kept_freq, restore_time, restore_freq, max_kept, max_restore)
    kept_values, restore_values = PatchGatherFunction.apply(frames.contiguous(), *places)
    kept_layout: Layout = kept if layout == "packed" else Padded(kept_mask)
    restore_layout: Layout = restore if layout == "packed" else Padded(restore_mask)
    return MaskedPatches(
        Patches(kept_values, PatchPositions(kept_time, kept_freq, kept_layout)),
        Patches(restore_values, PatchPositions(restore_time, restore_freq, restore_layout)),
    )


_dispatch = backend.register("patch_mask", reference=patch_mask_reference, fused={"cuda": _patch_mask_cuda})


def argsort_masking(
    frames: Tensor,
    frame_offsets: Tensor,
    keep_counts: Tensor,
    sample_index: Tensor,
    *,
    seed: int,
    step: int,
    layout: LayoutName = "padded",
) -> MaskedPatches:
    """Compute :func:`patch_mask` as MAE's code does: cut everything into patches, argsort the noise twice, gather.

    A rival for benches. The noise is the keyed one, so that the result can be checked.
    """
    spectrogram, device = Spectrogram(frames, frame_offsets), frames.device
    patch_counts, keep = spectrogram.patch_counts, keep_counts.to(device)
    packed = Packed.from_lengths(patch_counts, device)
    positions = PatchPositions(packed.positions // FREQ_PATCHES, packed.positions % FREQ_PATCHES, packed)
    patches = pad(patch_values(spectrogram, packed.sequence_ids, positions), packed)
    key = counter_rng.fold(counter_rng.root_key(seed, step, device), sample_index.to(device))
    noise = counter_rng.random_bits(key[:, None], torch.arange(packed.padded_width, device=device))
    noise = torch.where(padded_layout(packed).mask, noise, _PAST_ALL)
    is_restore = noise.argsort(dim=1).argsort(dim=1) >= keep[:, None]
    numbers = is_restore.to(torch.uint8).argsort(dim=1, stable=True)  # kept, then restore, each ascending

    def take(first: Tensor, counts: Tensor) -> Patches:
        part = Packed.from_lengths(counts, device)
        mask = padded_layout(part)
        slots = first[:, None] + mask.positions
        taken = numbers.gather(1, slots.clamp_max(packed.padded_width - 1)) * mask.mask
        values = patches.gather(1, taken[:, :, None].expand(-1, -1, PATCH_PIXELS)) * mask.mask[:, :, None]
        if layout == "packed":
            taken, values, mask = unpad(taken, part), unpad(values, part), part
        return Patches(values, PatchPositions(taken // FREQ_PATCHES, taken % FREQ_PATCHES, mask))

    return MaskedPatches(take(torch.zeros_like(keep), keep_counts), take(keep, patch_counts - keep_counts))


def _clips(
    frames: list[int],
    keep: list[int] | None = None,
    *,
    limit: int = 0,
    layout: LayoutName = "packed",
    gradient: bool = False,
    paper: bool = False,
) -> MakeInputs:
    """Clips of so many ``frames`` that keep so many patches, at most ``limit`` where that is given, or a fifth.

    In ``paper`` cases frames are float32, as ``log_mel`` makes them.
    """

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        offsets = F.pad(torch.tensor(frames, dtype=torch.int64).cumsum(0), (1, 0))
        drawn_dtype = torch.float32 if paper else dtype
        drawn = draw_normal((int(offsets[-1]), MEL_BANDS), generator, device, drawn_dtype)
        spectrogram = Spectrogram(drawn if gradient else drawn.detach(), offsets)
        counts = spectrogram.patch_counts
        chosen = keep_at_most(counts, limit) if limit else keep_fraction(counts, 0.2)
        return {
            "frames": spectrogram.frames,
            "frame_offsets": offsets,
            "keep_counts": chosen if keep is None else torch.tensor(keep, dtype=torch.int64),
            "sample_index": torch.randint(2**40, (len(frames),), generator=generator),
            "seed": 2**40 + 3,
            "step": 7,
            "layout": layout,
        }

    return make


def _forward_work(inputs: Inputs) -> Work:
    """Pixels of every whole patch are read and written, its position is written."""
    frames = inputs["frames"]
    patches = int(Spectrogram(frames, inputs["frame_offsets"]).patch_counts.sum())
    return Work(bytes=patches * (2 * PATCH_PIXELS * frames.element_size() + 16))


def _backward_work(inputs: Inputs) -> Work:
    """Gradients of pixels are read, those of the frames are written."""
    return Work(bytes=2 * inputs["frames"].nbytes)


SPEC = Spec(
    name="patch_mask",
    op=patch_mask,
    reference=patch_mask_reference,
    cases=(
        Case("packed, gradient of the frames", _clips([40, 0, 7, 163], gradient=True)),
        Case("padded, gradient of the frames", _clips([40, 0, 7, 163], layout="padded", gradient=True)),
        Case("all, none, one", _clips([32, 48, 16], [16, 0, 1])),
        Case("all, none, one, padded", _clips([32, 48, 16], [16, 0, 1], layout="padded")),
        Case("nothing left", _clips([32, 16], limit=16, layout="padded")),
        Case("no patch", _clips([15, 0], layout="padded")),
        Case("no clip", _clips([], layout="padded")),
        Case("more than one block of words", _clips([1100, 24])),
        Case("stage 1", _clips([1504] * 512, paper=True), paper=True),
        Case("stage 2", _clips([3000] * 256, limit=512, paper=True), paper=True),
        Case("longest, with gradient", _clips([32_768] * 8, layout="padded", gradient=True, paper=True), paper=True),
    ),
    forward=_forward_work,
    backward=_backward_work,
    budget=ErrorBudget(factor=1.0, floor_ulps=0.0),  # it moves numbers
    sizes_from_host=True,
    rivals={"argsort (MAE)": argsort_masking},
)
