"""Kernels of :mod:`.layer_norm`, their launchers and ops: whole rows in registers, statistics and sums in float32."""

from typing import Any

import torch
from torch import Tensor

from .dropout import OP_SCHEMA, device_kept, kernel_arguments
from .library import define
from .partial_sums import sum_partials
from .triton_runtime import cdiv, jit, launch, next_power_of_two, processors, tl

MAX_WIDTH = 8192
"""Widest row: it has to fit into one program's registers."""


@jit(do_not_specialize=["rows", "threshold", "slots", "site_key"])
def layer_norm_fwd_kernel(
    x,  # [rows, D]
    residual,  # [rows, D] or None
    weight,  # [D]
    bias,  # [D]
    normed,  # [rows, D]
    new_residual,  # [rows, D] where there is a residual
    mean,  # float32 [rows]
    rstd,  # float32 [rows]
    rows,
    eps,
    keep_scale,
    threshold,
    slots,  # of a padded sequence
    site_key,
    sample_index,  # int64 [sequences] or None: no dropout
    sequence_ids,  # int64 [rows] or None: padded
    positions,  # int64 [rows] or None: padded
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Normalise BLOCK_ROWS rows of x, or of their sum with the residual."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_D)
    in_row, in_column = row < rows, column < D
    mask = in_row[:, None] & in_column[None, :]
    offsets = row.to(tl.int64)[:, None] * D + column[None, :]

    h = tl.load(x + offsets, mask, other=0.0).to(tl.float32)
    if sample_index is not None:
        kept = device_kept(row, column, in_row, threshold, slots, site_key, sample_index, sequence_ids, positions)
        h = tl.where(kept, h * keep_scale, 0.0)
    if residual is not None:
        h += tl.load(residual + offsets, mask, other=0.0).to(tl.float32)
        rounded = h.to(new_residual.dtype.element_ty)
        tl.store(new_residual + offsets, rounded, mask)
        h = rounded.to(tl.float32)  # what backward will see

    row_mean = tl.sum(h, 1) / D
    centred = tl.where(mask, h - row_mean[:, None], 0.0)
    row_rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    w = tl.load(weight + column, in_column, other=0.0).to(tl.float32)
    b = tl.load(bias + column, in_column, other=0.0).to(tl.float32)
    out = centred * row_rstd[:, None] * w[None, :] + b[None, :]
    tl.store(normed + offsets, out.to(normed.dtype.element_ty), mask)
    tl.store(mean + row, row_mean, in_row)
    tl.store(rstd + row, row_rstd, in_row)


@jit(do_not_specialize=["rows", "threshold", "slots", "site_key"])
def layer_norm_bwd_kernel(
    d_normed,  # [rows, D]
    d_new_residual,  # [rows, D] or None
    h,  # [rows, D]: what was normalised
    weight,  # [D]
    mean,  # float32 [rows]
    rstd,  # float32 [rows]
    d_residual,  # [rows, D]: gradient of h
    d_x,  # [rows, D] or None where it is that of h
    partials,  # float32 [programs, 2, D]: each program's share of the gradients of weight and bias
    rows,
    keep_scale,
    threshold,
    slots,  # of a padded sequence
    site_key,
    sample_index,  # int64 [sequences] or None: no dropout
    sequence_ids,  # int64 [rows] or None: padded
    positions,  # int64 [rows] or None: padded
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Walk over every n-th block of rows, n the number of programs, adding up weight's and bias's gradients."""
    column = tl.arange(0, BLOCK_D)
    in_column = column < D
    w = tl.load(weight + column, in_column, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK_D,), tl.float32)
    d_bias = tl.zeros((BLOCK_D,), tl.float32)
    tiles = tl.cdiv(rows, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):  # type: ignore[misc]
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        in_row = row < rows
        mask = in_row[:, None] & in_column[None, :]
        offsets = row.to(tl.int64)[:, None] * D + column[None, :]
        dy = tl.load(d_normed + offsets, mask, other=0.0).to(tl.float32)
        value = tl.load(h + offsets, mask, other=0.0).to(tl.float32)
        row_mean = tl.load(mean + row, in_row, other=0.0)
        row_rstd = tl.load(rstd + row, in_row, other=0.0)

        unit = (value - row_mean[:, None]) * row_rstd[:, None]  # past the row's end it meets dy = 0
        d_weight += tl.sum(dy * unit, 0)
        d_bias += tl.sum(dy, 0)
        d_unit = dy * w[None, :]
        along_one = tl.sum(d_unit, 1) / D
        along_unit = tl.sum(d_unit * unit, 1) / D
        dh = (d_unit - along_one[:, None] - unit * along_unit[:, None]) * row_rstd[:, None]
        if d_new_residual is not None:
            dh += tl.load(d_new_residual + offsets, mask, other=0.0).to(tl.float32)
        tl.store(d_residual + offsets, dh.to(d_residual.dtype.element_ty), mask)
        if d_x is not None:
            if sample_index is not None:
                kept = device_kept(
                    row, column, in_row, threshold, slots, site_key, sample_index, sequence_ids, positions
                )
                dh = tl.where(kept, dh * keep_scale, 0.0)
            tl.store(d_x + offsets, dh.to(d_x.dtype.element_ty), mask)
    out = partials + tl.program_id(0).to(tl.int64) * 2 * D + column
    tl.store(out, d_weight, in_column)
    tl.store(out + D, d_bias, in_column)


def _tiles(width: int, elements: int) -> dict[str, int]:
    """Rows and warps of a program that holds ``elements`` at a time, or one row where that is more."""
    block = next_power_of_two(width)
    return {
        "D": width,
        "BLOCK_D": block,
        "BLOCK_ROWS": max(elements // block, 1),
        "num_warps": max(block // 512, 4),
    }


def layer_norm_fwd(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    *dropout: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward kernel on contiguous ``[rows, D]``: normed, new residual (``[0]`` without one), mean, rstd."""
    normed, new_residual, mean, rstd = _fwd_outputs(x, residual, weight, bias, eps, dtype)
    tiles = _tiles(x.shape[1], 4096)
    launch(
        layer_norm_fwd_kernel,
        (cdiv(x.shape[0], tiles["BLOCK_ROWS"]),),
        *(x, residual, weight, bias, normed, new_residual, mean, rstd, x.shape[0], eps),
        *kernel_arguments(*dropout),
        **tiles,
    )
    return normed, new_residual, mean, rstd


def layer_norm_bwd(
    d_normed: Tensor,
    d_new_residual: Tensor | None,
    h: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x_dtype: torch.dtype,
    rate: float,
    *dropout: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch both backward kernels: gradients of h, of x (``[0]`` where the same), of weight and bias ``[2, D]``."""
    d_residual, d_x, d_parameters = _bwd_outputs(d_normed, d_new_residual, h, weight, mean, rstd, x_dtype, rate)
    rows, width = h.shape
    tiles = _tiles(width, 2048)
    # All programs run at once: what they hold leaves room for three on a processor, fewer of the widest. Two blocks of
    # rows are on their way to shared memory while one is computed, where three fit there.
    together = min(max(MAX_WIDTH // tiles["BLOCK_D"], 1), 3)
    programs = min(cdiv(rows, tiles["BLOCK_ROWS"]), together * processors(h.device))
    stages = 3 if tiles["BLOCK_D"] <= 2048 else 1
    partials = torch.empty((programs, 2 * width), dtype=torch.float32, device=h.device)
    launch(
        layer_norm_bwd_kernel,
        (programs,),
        *(d_normed, d_new_residual, h, weight, mean, rstd, d_residual, d_x if d_x.dim() == 2 else None),
        *(partials, rows, *kernel_arguments(rate, *dropout)),
        **tiles,
        STAGES=stages,
    )
    sum_partials(partials, d_parameters)
    return d_residual, d_x, d_parameters


def _fwd_outputs(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, *_dropout: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    normed = torch.empty_like(x, dtype=dtype)
    new_residual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    mean, rstd = (x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2))
    return normed, new_residual, mean, rstd


def _bwd_outputs(
    d_normed: Tensor,
    d_new_residual: Tensor | None,
    h: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x_dtype: torch.dtype,
    rate: float,
    *_dropout: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    own_dx = rate > 0.0 or x_dtype != h.dtype
    d_x = torch.empty_like(h, dtype=x_dtype) if own_dx else h.new_empty(0)
    return torch.empty_like(h), d_x, weight.new_empty((2, h.shape[1]))


layer_norm_fwd_op = define(
    "layer_norm_fwd(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps, ScalarType dtype, "
    f"{OP_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
    layer_norm_fwd,
    _fwd_outputs,
)
layer_norm_bwd_op = define(
    "layer_norm_bwd(Tensor d_normed, Tensor? d_new_residual, Tensor h, Tensor weight, Tensor mean, Tensor rstd, "
    f"ScalarType x_dtype, {OP_SCHEMA}) -> (Tensor, Tensor, Tensor)",
    layer_norm_bwd,
    _bwd_outputs,
)
