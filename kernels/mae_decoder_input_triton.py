"""Kernels of :mod:`.mae_decoder_input`, their launchers and ops.

Visible and restore tokens are two lists of rows, each clip's consecutive in both and in the output: clip b's rows of a
list start at its ``cu_seqlens[b]``, or at b times its padded width. A program that knows its clip knows all its rows.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .library import define
from .log_mel import FREQ_PATCHES
from .partial_sums import sum_partials
from .sincos import device_sincos, sincos_frequencies
from .triton_runtime import cdiv, jit, launch, next_power_of_two, processors, tl

MAX_WIDTH = 4096
"""Widest token: it has to fit into one program's registers."""


@jit
def _clip_rows(cu_seqlens, clip, padded_len):
    """First row and number of rows of a clip, in 64 bits."""
    if cu_seqlens is not None:
        first = tl.load(cu_seqlens + clip).to(tl.int64)
        count = tl.load(cu_seqlens + clip + 1).to(tl.int64) - first
    else:
        first = tl.cast(clip, tl.int64) * padded_len
        count = tl.cast(padded_len, tl.int64)
    return first, count


@jit
def _write_rows(
    out, tokens, token_stride, times, freqs, freq_embedding, frequencies, first, last, D, FREQS, BLOCK_HALF
):
    """Write rows ``first`` to ``last`` - 1, one by one: sine and cosine are kept while the time stays the same.

    A freq that the table does not have makes its row NaN.
    """
    sine_column = tl.arange(0, BLOCK_HALF)
    cosine_column = D // 2 + sine_column
    in_half = sine_column < D // 2
    frequency = tl.load(frequencies + sine_column, in_half, other=0.0)
    sine, cosine = device_sincos(frequency)
    kept_time = tl.full((), 1, tl.int64)
    for row in range(first, last):
        time = tl.load(times + row).to(tl.int64)
        freq = tl.load(freqs + row)
        if time != kept_time:
            kept_time = time
            sine, cosine = device_sincos(time.to(tl.float32) * frequency)
        known_freq = tl.minimum(tl.maximum(freq, 0), FREQS - 1)
        token, table_row = tokens + row * token_stride, freq_embedding + known_freq * D
        sine_half = tl.load(token + sine_column, in_half).to(tl.float32) + sine
        cosine_half = tl.load(token + cosine_column, in_half).to(tl.float32) + cosine
        sine_half += tl.load(table_row + sine_column, in_half).to(tl.float32)
        cosine_half += tl.load(table_row + cosine_column, in_half).to(tl.float32)
        sine_half = tl.where(freq == known_freq, sine_half, float("nan"))
        cosine_half = tl.where(freq == known_freq, cosine_half, float("nan"))
        tl.store(out + row * D + sine_column, sine_half.to(out.dtype.element_ty), in_half)
        tl.store(out + row * D + cosine_column, cosine_half.to(out.dtype.element_ty), in_half)


@jit(do_not_specialize=["visible_len", "restore_len"])
def mae_decoder_input_fwd_kernel(
    visible,  # [visible rows, D]
    visible_time,  # [visible rows]
    visible_freq,  # [visible rows]
    restore_time,  # [restore rows]
    restore_freq,  # [restore rows]
    restore_token,  # [D]
    freq_embedding,  # [FREQS, D]
    frequencies,  # float32 [D / 2]: angle of a position is time * frequency
    out,  # [visible rows + restore rows, D]
    visible_cu_seqlens,  # int32 [clips + 1] or None: padded
    restore_cu_seqlens,  # int32 [clips + 1] or None: padded
    visible_len,
    restore_len,
    D: tl.constexpr,
    FREQS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Write BLOCK_ROWS rows of a clip."""
    clip = tl.program_id(0)
    visible_first, visible_count = _clip_rows(visible_cu_seqlens, clip, visible_len)
    restore_first, restore_count = _clip_rows(restore_cu_seqlens, clip, restore_len)
    first = tl.program_id(1) * BLOCK_ROWS
    out_rows = out + (visible_first + restore_first) * D
    _write_rows(
        *(out_rows, visible + visible_first * D, D, visible_time + visible_first, visible_freq + visible_first),
        *(freq_embedding, frequencies, first, tl.minimum(first + BLOCK_ROWS, visible_count)),
        *(D, FREQS, BLOCK_HALF),
    )
    first -= visible_count
    _write_rows(
        *(out_rows + visible_count * D, restore_token, 0, restore_time + restore_first, restore_freq + restore_first),
        *(freq_embedding, frequencies, tl.maximum(first, 0), tl.minimum(first + BLOCK_ROWS, restore_count)),
        *(D, FREQS, BLOCK_HALF),
    )


@jit
def _load_four(pointer, stride, row, last, mask):
    """Rows ``row`` to ``row`` + 3, asked for before any is waited for; the ``last`` again in place of one behind it."""
    return (
        tl.load(pointer + row * stride, mask),
        tl.load(pointer + tl.minimum(row + 1, last) * stride, mask),
        tl.load(pointer + tl.minimum(row + 2, last) * stride, mask),
        tl.load(pointer + tl.minimum(row + 3, last) * stride, mask),
    )


@jit
def _add_by_freq(sums, row, freq):
    """Add ``row`` to the one of ``sums`` that belongs to ``freq``: a jump, as all threads have the same."""
    sum_0, sum_1, sum_2, sum_3, sum_4, sum_5, sum_6, sum_7 = sums
    if freq == 0:
        sum_0 += row
    if freq == 1:
        sum_1 += row
    if freq == 2:
        sum_2 += row
    if freq == 3:
        sum_3 += row
    if freq == 4:
        sum_4 += row
    if freq == 5:
        sum_5 += row
    if freq == 6:
        sum_6 += row
    if freq == 7:
        sum_7 += row
    return sum_0, sum_1, sum_2, sum_3, sum_4, sum_5, sum_6, sum_7


@jit(do_not_specialize=["restore_programs", "clips", "visible_len", "restore_len"])
def mae_decoder_input_bwd_kernel(
    d_out,  # [visible rows + restore rows, D]
    visible_freq,  # [visible rows]
    restore_freq,  # [restore rows]
    d_visible,  # [visible rows, D]
    partials,  # float32 [programs, FREQS + 1, D]: each program's share of the gradients of frequency table and token
    visible_cu_seqlens,  # int32 [clips + 1] or None: padded
    restore_cu_seqlens,  # int32 [clips + 1] or None: padded
    restore_programs,
    clips,
    visible_len,
    restore_len,
    D: tl.constexpr,
    FREQS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Walk over every n-th block of restore rows, or of visible ones, n the number of programs of that kind."""
    program = tl.program_id(0)
    restoring = program < restore_programs
    if restoring:
        first_block, step = program, restore_programs
        blocks, freqs = tl.cdiv(restore_len, BLOCK_ROWS), restore_freq
    else:
        first_block, step = program - restore_programs, tl.num_programs(0) - restore_programs
        blocks, freqs = tl.cdiv(visible_len, BLOCK_ROWS), visible_freq
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_column = column < D
    zero = tl.zeros((BLOCK_D,), tl.float32)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero)
    for block in range(first_block, clips * blocks, step):
        clip, first = block // blocks, (block % blocks) * BLOCK_ROWS
        visible_first, visible_count = _clip_rows(visible_cu_seqlens, clip, visible_len)
        restore_first, restore_count = _clip_rows(restore_cu_seqlens, clip, restore_len)
        last = tl.minimum(first + BLOCK_ROWS, tl.where(restoring, restore_count, visible_count)) - 1
        source = tl.where(restoring, restore_first, visible_first)
        out_first = source + tl.where(restoring, visible_first + visible_count, restore_first)
        for row in range(first, last + 1, 4):
            freq = _load_four(freqs + source, 1, row, last, None)
            gradient = _load_four(d_out + out_first * D + column, D, row, last, in_column)
            for i in tl.static_range(4):  # type: ignore[misc]
                if not restoring:
                    copy = d_visible + (source + tl.minimum(row + i, last)) * D + column
                    tl.store(copy, gradient[i].to(d_visible.dtype.element_ty), in_column)
                once = tl.where(row + i <= last, freq[i], -1)
                sums = _add_by_freq(sums, gradient[i].to(tl.float32), once)

    share = partials + program.to(tl.int64) * (FREQS + 1) * D + column
    for freq in tl.static_range(FREQS):  # type: ignore[misc]
        tl.store(share + freq * D, sums[freq], in_column)
    restored = sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7]
    tl.store(share + FREQS * D, tl.where(restoring, restored, 0.0), in_column)


def mae_decoder_input_fwd(
    visible: Tensor,
    visible_time: Tensor,
    visible_freq: Tensor,
    restore_time: Tensor,
    restore_freq: Tensor,
    restore_token: Tensor,
    freq_embedding: Tensor,
    visible_cu_seqlens: Tensor | None,
    restore_cu_seqlens: Tensor | None,
    sizes: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """Launch the forward kernel on contiguous rows; ``sizes``: clips, longest (padded) visible and restore length."""
    out = _fwd_output(visible, visible_time, visible_freq, restore_time, dtype)
    width = visible.shape[1]
    clips, visible_len, restore_len = sizes
    half, rows = next_power_of_two(width // 2), 32
    launch(
        mae_decoder_input_fwd_kernel,
        (clips, cdiv(visible_len + restore_len, rows)),
        *(visible, visible_time, visible_freq, restore_time, restore_freq, restore_token, freq_embedding),
        *(_frequencies(width, visible.device), out, visible_cu_seqlens, restore_cu_seqlens, visible_len, restore_len),
        D=width,
        FREQS=FREQ_PATCHES,
        BLOCK_HALF=half,
        BLOCK_ROWS=rows,
        num_warps=max(half // 128, 1),
    )
    return out


def mae_decoder_input_bwd(
    d_out: Tensor,
    visible_freq: Tensor,
    restore_freq: Tensor,
    visible_cu_seqlens: Tensor | None,
    restore_cu_seqlens: Tensor | None,
    sizes: Sequence[int],
    visible_dtype: torch.dtype,
    table_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Launch both backward kernels: gradients of visible and, ``[FREQS + 1, D]``, of frequency table and token."""
    d_visible, d_tables = _bwd_outputs(d_out, visible_freq, visible_dtype, table_dtype)
    width = d_out.shape[1]
    clips, visible_len, restore_len = sizes
    block, rows = min(next_power_of_two(width), 256), 32  # a warp: eight columns a thread, with eight sums of each
    visible_blocks, restore_blocks = clips * cdiv(visible_len, rows), clips * cdiv(restore_len, rows)
    blocks = visible_blocks + restore_blocks
    programs = min(blocks, 4 * processors(d_out.device))
    restore_programs = min(cdiv(programs * restore_blocks, max(blocks, 1)), programs - min(visible_blocks, 1))
    partials = torch.empty((programs, d_tables.numel()), dtype=torch.float32, device=d_out.device)
    launch(
        mae_decoder_input_bwd_kernel,
        (programs, cdiv(width, block)),
        *(d_out, visible_freq, restore_freq, d_visible, partials, visible_cu_seqlens, restore_cu_seqlens),
        *(restore_programs, *sizes),
        D=width,
        FREQS=FREQ_PATCHES,
        BLOCK_D=block,
        BLOCK_ROWS=rows,
        num_warps=1,
    )
    sum_partials(partials, d_tables)
    return d_visible, d_tables


@functools.cache
def _frequencies(width: int, device: torch.device) -> Tensor:
    """The reference's own numbers: late in a clip a unit in the last place of one moves the angle by many."""
    return sincos_frequencies(width, device)


def _fwd_output(
    visible: Tensor, visible_time: Tensor, visible_freq: Tensor, restore_time: Tensor, *rest: Any
) -> Tensor:
    rows = visible.shape[0] + restore_time.shape[0]
    return visible.new_empty((rows, visible.shape[1]), dtype=rest[-1])


def _bwd_outputs(d_out: Tensor, visible_freq: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, visible_dtype, table_dtype = rest
    width = d_out.shape[1]
    d_visible = d_out.new_empty((visible_freq.shape[0], width), dtype=visible_dtype)
    return d_visible, d_out.new_empty((FREQ_PATCHES + 1, width), dtype=table_dtype)


_LAYOUT_SCHEMA = "Tensor? visible_cu_seqlens, Tensor? restore_cu_seqlens, SymInt[] sizes"
mae_decoder_input_fwd_op = define(
    "mae_decoder_input_fwd(Tensor visible, Tensor visible_time, Tensor visible_freq, Tensor restore_time, "
    f"Tensor restore_freq, Tensor restore_token, Tensor freq_embedding, {_LAYOUT_SCHEMA}, ScalarType dtype) -> Tensor",
    mae_decoder_input_fwd,
    _fwd_output,
)
mae_decoder_input_bwd_op = define(
    f"mae_decoder_input_bwd(Tensor d_out, Tensor visible_freq, Tensor restore_freq, {_LAYOUT_SCHEMA}, "
    "ScalarType visible_dtype, ScalarType table_dtype) -> (Tensor, Tensor)",
    mae_decoder_input_bwd,
    _bwd_outputs,
)
