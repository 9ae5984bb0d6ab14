"""Moving patches on the device: kernel, launchers and ops of the gather of :mod:`.patch_mask`, forward and backward."""

from typing import Any

from torch import Tensor

from .library import define
from .log_mel import MEL_BANDS, PATCH_PIXELS, PATCH_SIDE
from .triton_runtime import cdiv, jit, launch, tl


@jit(do_not_specialize=["blocks", "kept_blocks", "kept_width", "restore_width"])
def patch_gather_kernel(
    frames,  # [F, bands]
    frame_offsets,  # int32 [B + 1]
    kept_offsets,  # int32 [B + 1]
    restore_offsets,  # int32 [B + 1]
    kept_time,  # int64 [kept_total] or [B, kept_width]; so are the next three
    kept_freq,
    restore_time,
    restore_freq,
    kept_values,  # [kept_total, SIDE * SIDE] or [B, kept_width, SIDE * SIDE]
    restore_values,
    blocks,  # of a clip: first those of kept, then those of restore
    kept_blocks,
    kept_width,  # 0: packed
    restore_width,
    BANDS: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Move BLOCK_ROWS patches of one clip from the frames to their rows; BACKWARD from their rows to the frames."""
    # A clip's programs run side by side: kept and restore patches share the frames' cache lines.
    clip, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    first_pixel = frames + tl.load(frame_offsets + clip).to(tl.int64) * BANDS
    if block < kept_blocks:
        _move_patches(
            first_pixel,
            kept_offsets,
            kept_time,
            kept_freq,
            kept_values,
            clip,
            block,
            kept_width,
            BANDS,
            SIDE,
            BLOCK_ROWS,
            BACKWARD,
        )
    else:
        _move_patches(
            first_pixel,
            restore_offsets,
            restore_time,
            restore_freq,
            restore_values,
            clip,
            block - kept_blocks,
            restore_width,
            BANDS,
            SIDE,
            BLOCK_ROWS,
            BACKWARD,
        )


@jit
def _move_patches(
    first_pixel,
    offsets,
    time,
    freq,
    values,
    clip,
    block,
    width,
    BANDS: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    start = tl.load(offsets + clip)
    length = tl.load(offsets + clip + 1) - start
    slots = tl.where(width > 0, width, length)  # padding slots hold zeros
    slot = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row = tl.where(width > 0, clip.to(tl.int64) * width, start.to(tl.int64)) + slot
    is_patch = slot < length
    first_frame = tl.load(time + row, is_patch, other=0) * SIDE
    first_band = tl.load(freq + row, is_patch, other=0) * SIDE

    frame, band = tl.arange(0, SIDE)[None, :, None], tl.arange(0, SIDE)[None, None, :]
    pixels = first_pixel + (first_frame * BANDS + first_band)[:, None, None] + frame * BANDS + band
    pixel_rows = values + (row * (SIDE * SIDE))[:, None, None] + frame * SIDE + band
    if BACKWARD:
        tl.store(pixels, tl.load(pixel_rows, is_patch[:, None, None]), is_patch[:, None, None])
    else:
        moved = tl.load(pixels, is_patch[:, None, None], other=0.0)
        tl.store(pixel_rows, moved, (slot < slots)[:, None, None])


def patch_gather_fwd(frames: Tensor, *places: Any) -> tuple[Tensor, Tensor]:
    """Launch the gather of contiguous ``frames``: pixels ``[..., 256]`` of kept and of restore.

    ``places`` are the offsets of frames, kept and restore; time and frequency of kept and of restore; the largest
    number of kept and of restore patches of a clip.
    """
    values = _gather_outputs(frames, *places)
    _move(frames, values, *places, backward=False)
    return values


def patch_gather_bwd(d_kept: Tensor, d_restore: Tensor, num_frames: int, *places: Any) -> Tensor:
    """Launch the way back: gradient of the frames, zero in those that belong to no patch."""
    d_frames = d_kept.new_zeros((num_frames, MEL_BANDS))
    _move(d_frames, (d_kept, d_restore), *places, backward=True)
    return d_frames


def _move(frames: Tensor, values: tuple[Tensor, Tensor], *places: Any, backward: bool) -> None:
    *tensors, max_kept, max_restore = places
    kept_width, restore_width = (tensor.shape[1] if tensor.dim() == 3 else 0 for tensor in values)
    rows = 16
    kept_blocks = cdiv(max(max_kept, kept_width), rows)
    blocks = kept_blocks + cdiv(max(max_restore, restore_width), rows)
    launch(
        patch_gather_kernel,
        ((len(tensors[0]) - 1) * blocks,),
        *(frames, *tensors, *values, blocks, kept_blocks, kept_width, restore_width),
        BANDS=MEL_BANDS,
        SIDE=PATCH_SIDE,
        BLOCK_ROWS=rows,
        BACKWARD=backward,
    )


def _gather_outputs(frames: Tensor, *places: Any) -> tuple[Tensor, Tensor]:
    _, _, _, kept_time, _, restore_time, *_ = places
    kept, restore = (frames.new_empty((*time.shape, PATCH_PIXELS)) for time in (kept_time, restore_time))
    return kept, restore


def _gather_bwd_outputs(d_kept: Tensor, d_restore: Tensor, num_frames: int, *places: Any) -> Tensor:
    return d_kept.new_empty((num_frames, MEL_BANDS))


_PLACES = (
    "Tensor frame_offsets, Tensor kept_offsets, Tensor restore_offsets, Tensor kept_time, Tensor kept_freq, "
    "Tensor restore_time, Tensor restore_freq, SymInt max_kept, SymInt max_restore"
)
patch_gather_fwd_op = define(
    f"patch_gather_fwd(Tensor frames, {_PLACES}) -> (Tensor, Tensor)", patch_gather_fwd, _gather_outputs
)
patch_gather_bwd_op = define(
    f"patch_gather_bwd(Tensor d_kept, Tensor d_restore, SymInt num_frames, {_PLACES}) -> Tensor",
    patch_gather_bwd,
    _gather_bwd_outputs,
)
