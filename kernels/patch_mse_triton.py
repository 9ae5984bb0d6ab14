"""Kernel of :mod:`.patch_mse`, its launcher and op: the gradient is written beside the loss."""

import torch
from torch import Tensor

from .library import define
from .partial_sums import sum_partials_kernel
from .triton_runtime import cdiv, jit, launch, next_power_of_two, processors, tl

MAX_WIDTH = 4096
"""Widest patch: it has to fit into one program's registers."""


@jit(do_not_specialize=["rows"])
def patch_mse_fwd_kernel(
    prediction,  # [rows, W]
    target,  # [rows, W]
    selected,  # bool [rows]
    denominator,  # [] or None
    d_prediction,  # [rows, W] or None: nobody asks for the gradient
    partials,  # float32 [programs]: each program's share of the loss
    rows,
    fixed_denominator,  # what stands for a denominator that is None
    eps,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    VARIANCE_DIVISOR: tl.constexpr,
):
    """Walk over every n-th block of rows, n the number of programs, adding up squared errors."""
    count = tl.load(denominator).to(tl.float32) if denominator is not None else fixed_denominator
    scale = 1.0 / (W * count)
    column = tl.arange(0, BLOCK_W)
    in_column = column < W
    squares = tl.zeros((BLOCK_ROWS,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0)):
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        in_row = row < rows
        scored = tl.load(selected + row, in_row, other=0) != 0
        mask = scored[:, None] & in_column[None, :]
        first = row.to(tl.int64) * W
        offsets = first[:, None] + column[None, :]

        predicted = tl.load(prediction + offsets, mask, other=0.0).to(tl.float32)
        # Beside its first pixel a constant patch is exactly 0, and one far from 0 loses nothing.
        level = tl.load(target + first, scored, other=0.0).to(tl.float32)
        pixels = tl.load(target + offsets, mask, other=0.0).to(tl.float32)
        pixels = tl.where(mask, pixels - level[:, None], 0.0)
        centred = tl.where(mask, pixels - (tl.sum(pixels, 1) / W)[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / VARIANCE_DIVISOR + eps)
        error = tl.where(mask, predicted - centred * rstd[:, None], 0.0)
        squares += tl.sum(error * error, 1)
        if d_prediction is not None:
            gradient = tl.where(mask, error * (2.0 * scale), 0.0)
            tl.store(
                d_prediction + offsets,
                gradient.to(d_prediction.dtype.element_ty),
                in_row[:, None] & in_column[None, :],
            )
    tl.store(partials + tl.program_id(0), tl.sum(squares, 0) * scale)


def patch_mse_fwd(
    prediction: Tensor,
    target: Tensor,
    selected: Tensor,
    denominator: Tensor | None,
    fixed_denominator: float,
    unbiased: bool,
    eps: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel on contiguous ``[rows, W]``: loss ``[]``, d(prediction) or ``[0]`` without."""
    loss, d_prediction = _fwd_outputs(
        prediction, target, selected, denominator, fixed_denominator, unbiased, eps, with_gradient
    )
    rows, width = prediction.shape
    tiles = _tiles(width)
    programs = min(max(cdiv(rows, tiles["BLOCK_ROWS"]), 1), 32 * processors(prediction.device))
    partials = torch.empty(programs, dtype=torch.float32, device=prediction.device)
    launch(
        patch_mse_fwd_kernel,
        (programs,),
        *(prediction, target, selected, denominator, d_prediction if with_gradient else None, partials),
        *(rows, fixed_denominator, eps),
        **tiles,
        VARIANCE_DIVISOR=width - int(unbiased),
    )
    launch(sum_partials_kernel, (1,), partials, loss, programs, 1, BLOCK_PROGRAMS=1024, BLOCK_N=1)
    return loss, d_prediction


def _tiles(width: int) -> dict[str, int]:
    """Rows and warps of a program: 2048 elements on 4 warps, 16 a thread, or one row where that is more."""
    block = next_power_of_two(width)
    return {"W": width, "BLOCK_W": block, "BLOCK_ROWS": max(2048 // block, 1), "num_warps": 4}


def _fwd_outputs(
    prediction: Tensor,
    target: Tensor,
    selected: Tensor,
    denominator: Tensor | None,
    fixed_denominator: float,
    unbiased: bool,
    eps: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    loss = prediction.new_empty((), dtype=torch.float32)
    return loss, torch.empty_like(prediction) if with_gradient else prediction.new_empty(0)


patch_mse_fwd_op = define(
    "patch_mse_fwd(Tensor prediction, Tensor target, Tensor selected, Tensor? denominator, float fixed_denominator, "
    "bool unbiased, float eps, bool with_gradient) -> (Tensor, Tensor)",
    patch_mse_fwd,
    _fwd_outputs,
)
