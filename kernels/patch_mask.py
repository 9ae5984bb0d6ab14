"""A random subset of each clip's patches: which are kept, which are left to restore, and their pixels.

For a spectrogram that is there, or that has a gradient. From a wave :mod:`.log_mel_patches` gives the same patches and
never writes the spectrogram.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend, counter_rng
from .checks import FUSED_DTYPES, check_device, check_dtype, check_shape
from .choose_patches import (
    PAST_ALL,
    ChosenPatches,
    check_keep_counts,
    choose_patches_fused,
    choose_patches_reference,
    keep_at_most,
    keep_fraction,
)
from .layout import LayoutName, Packed, Patches, PatchPositions, pad, padded_layout, unpad
from .log_mel import FREQ_PATCHES, MEL_BANDS, PATCH_PIXELS, Spectrogram, all_patches, place_patches
from .patch_gather_triton import patch_gather_bwd_op, patch_gather_fwd_op
from .spec import Case, ErrorBudget, Inputs, MakeInputs, Spec, Work, draw_normal


@dataclass(frozen=True)
class MaskedPatches:
    """``kept`` patches and the ``restore`` patches left out, each clip's in ascending order."""

    kept: Patches
    restore: Patches

    @classmethod
    def of(cls, values: Tensor, chosen: ChosenPatches) -> "MaskedPatches":
        """Take ``values`` ``[slots, 256]``: those of all kept slots, then those of all restore slots."""
        parts = values.split([chosen.kept.time.numel(), chosen.restore.time.numel()])
        kept, restore = (
            Patches(part.view(*places.time.shape, PATCH_PIXELS), places)
            for part, places in zip(parts, (chosen.kept, chosen.restore), strict=True)
        )
        return cls(kept, restore)


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
    """Keep a uniformly random subset of ``keep_counts`` patches of each clip, as ``choose_patches`` does.

    ``frames`` ``[F, 128]`` and ``frame_offsets`` int64 ``[B + 1]`` (host) are a :class:`Spectrogram`; ``keep_counts``
    int64 ``[B]`` (host); ``sample_index`` int64 ``[B]`` names each clip in the corpus.
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
    check_keep_counts("patch_mask", Spectrogram(frames, frame_offsets).patch_counts, keep_counts)
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
    """Compute :func:`patch_mask` in plain PyTorch: choose, unfold the spectrogram, put every patch into its row."""
    spectrogram = Spectrogram(frames, frame_offsets)
    chosen = choose_patches_reference(
        sample_index.to(frames.device), spectrogram.patch_counts, keep_counts, seed=seed, step=step, layout=layout
    )
    slots = chosen.kept.time.numel() + chosen.restore.time.numel()
    return MaskedPatches.of(place_patches(all_patches(spectrogram), chosen.rows, slots), chosen)


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
    sample_index = sample_index.to(frames.device, non_blocking=True)
    patch_counts = Spectrogram(frames, frame_offsets).patch_counts
    chosen, kept, restore, frame_starts = choose_patches_fused(
        sample_index, patch_counts, keep_counts, seed=seed, step=step, layout=layout, passenger=frame_offsets
    )
    offsets = frame_starts, kept.cu_seqlens, restore.cu_seqlens
    places = (chosen.kept.time, chosen.kept.freq, chosen.restore.time, chosen.restore.freq)
    kept_values, restore_values = PatchGatherFunction.apply(
        frames.contiguous(), *offsets, *places, kept.max_len, restore.max_len
    )
    return MaskedPatches(Patches(kept_values, chosen.kept), Patches(restore_values, chosen.restore))


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
    patches = pad(all_patches(spectrogram), packed)
    key = counter_rng.fold(counter_rng.root_key(seed, step, device), sample_index.to(device))
    noise = counter_rng.random_bits(key[:, None], torch.arange(packed.padded_width, device=device))
    noise = torch.where(padded_layout(packed).mask, noise, PAST_ALL)
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
