"""Sum over rows, the gradient of a bias: each row read once, the same bits each time."""

import torch
from torch import Tensor

from .library import define
from .partial_sums import sum_partials
from .triton_runtime import cdiv, jit, launch, processors, tl

BLOCK_ROWS, BLOCK_N = 16, 256
PROGRAMS_TOGETHER = 4
"""Programs of a multiprocessor, enough loads in flight to keep memory busy."""


@jit(do_not_specialize=["rows"])
def column_sum_kernel(
    values,  # [rows, N]
    partials,  # float32 [splits, N]
    rows,
    N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Walk over every n-th block of rows, n the number of splits, adding up BLOCK_N columns."""
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_column = column < N
    sums = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    blocks = tl.cdiv(rows, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):  # type: ignore[misc]
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & in_column[None, :]
        sums += tl.load(values + row.to(tl.int64)[:, None] * N + column[None, :], mask, other=0.0).to(tl.float32)
    tl.store(partials + tl.program_id(0).to(tl.int64) * N + column, tl.sum(sums, 0), in_column)


def column_sum(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum contiguous ``values`` ``[rows, N]`` over rows in float32: ``[N]`` in ``dtype``. No rows sum to zero."""
    total = _output(values, dtype)
    rows, width = values.shape
    tiles = max(cdiv(width, BLOCK_N), 1)
    splits = min(cdiv(rows, BLOCK_ROWS), cdiv(PROGRAMS_TOGETHER * processors(values.device), tiles))
    partials = torch.empty((splits, width), dtype=torch.float32, device=values.device)
    launch(
        column_sum_kernel,
        (splits, tiles),
        *(values, partials, rows),
        N=width,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_N=BLOCK_N,
        STAGES=3,
    )
    sum_partials(partials, total)
    return total


def _output(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.new_empty(values.shape[1], dtype=dtype)


column_sum_op = define("column_sum(Tensor values, ScalarType dtype) -> Tensor", column_sum, _output)
