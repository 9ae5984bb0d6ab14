"""Launchers and ops of :mod:`.info_nce`: the kernels walk over blocks, so that scratch memory does not grow with N².

Forward's blocks leave two float32 a row or column and tile, backward's a block of the logits' gradient. In bfloat16
both fit the L2 of an A100 (40 MB) or H100 (50 MB), and a batch of 4096 is one block.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .info_nce_bwd_triton import info_nce_bwd_kernel, info_nce_products_kernel
from .info_nce_triton import info_nce_fwd_kernel, info_nce_merge_kernel, info_nce_pairs_kernel
from .library import define
from .triton_runtime import cdiv, launch

PADDING = 128
"""What backward's block of the logits' gradient is padded to, and the rows that a program has of anything."""
FORWARD_BLOCK = 16_384
"""Most rows and most columns of a launch of forward: 34 MB of partial sums, 50 MB with float32's narrower tiles."""
BACKWARD_BLOCK = 4096
"""Most rows and most columns of a launch of backward: 34 MB of logits' gradient in bfloat16, twice that in float32."""


def info_nce_pairs(rows: Tensor, columns: Tensor) -> Tensor:
    """Launch the similarities of pairs on contiguous ``[N, D]``: float32 ``[N]``."""
    pairs = _pairs_output(rows, columns)
    count, width = rows.shape
    launch(info_nce_pairs_kernel, (cdiv(count, 16),), rows, columns, pairs, count, D=width, BLOCK_ROWS=16, BLOCK_D=128)
    return pairs


def info_nce_wrong(rows: Tensor, columns: Tensor, logit_scale: Tensor, first_row: int) -> tuple[Tensor, Tensor]:
    """Launch forward on contiguous ``[n, D]`` and ``[N, D]``: b and t of rows ``[2, n]`` and of columns ``[2, N]``."""
    row_wrong, column_wrong = _wrong_outputs(rows, columns, logit_scale, first_row)
    scale = _scale(logit_scale)
    tiles = _tiles(rows, 128)
    most_rows, most_columns = (min(len(side), FORWARD_BLOCK) for side in (rows, columns))
    row_partials = scale.new_empty(2 * cdiv(most_columns, tiles["BLOCK_N"]) * most_rows)
    column_partials = scale.new_empty(2 * cdiv(most_rows, tiles["BLOCK_M"]) * most_columns)
    for row_start, row_end in _blocks(len(rows), FORWARD_BLOCK):
        for column_start, column_end in _blocks(len(columns), FORWARD_BLOCK):
            row_tiles = cdiv(row_end - row_start, tiles["BLOCK_M"])
            column_tiles = cdiv(column_end - column_start, tiles["BLOCK_N"])
            launch(
                info_nce_fwd_kernel,
                (row_tiles * column_tiles,),
                *(rows, columns, scale, row_partials, column_partials),
                *(first_row, row_start, row_end, column_start, column_end),
                **tiles,
            )
            _merge(row_partials, column_tiles, row_wrong, scale, row_start, row_end, add=column_start > 0)
            _merge(column_partials, row_tiles, column_wrong, scale, column_start, column_end, add=row_start > 0)
    return row_wrong, column_wrong


def info_nce_gradients(
    rows: Tensor,
    columns: Tensor,
    pairs: Tensor,
    row_wrong: Tensor,
    column_wrong: Tensor,
    logit_scale: Tensor,
    d_loss: Tensor,
    first_row: int,
    halved: bool,
    with_columns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch backward: d(rows), d(columns) (``[0]`` where nobody asks), d(log s) from these rows, all float32."""
    d_rows, d_columns, _ = _gradients_outputs(
        rows, columns, pairs, row_wrong, column_wrong, logit_scale, d_loss, first_row, halved, with_columns
    )
    scale = _scale(logit_scale)
    weight = (0.5 if halved else 1.0) / max(len(columns), 1)
    tiles, product_tiles = _tiles(rows, 64), _tiles(rows, 128)
    largest = [cdiv(min(len(side), BACKWARD_BLOCK), PADDING) * PADDING for side in (rows, columns)]
    d_logits = rows.new_empty(largest)
    programs = d_logits.numel() // (tiles["BLOCK_M"] * tiles["BLOCK_N"])
    d_scale_partials = scale.new_zeros(max(programs, 1))
    for row_start, row_end in _blocks(len(rows), BACKWARD_BLOCK):
        for column_start, column_end in _blocks(len(columns), BACKWARD_BLOCK):
            block = row_start, row_end, column_start, column_end
            row_tiles, column_tiles = cdiv(row_end - row_start, PADDING), cdiv(column_end - column_start, PADDING)
            launch(
                info_nce_bwd_kernel,
                (row_tiles * column_tiles * (PADDING // tiles["BLOCK_N"]),),
                *(rows, columns, pairs, scale, row_wrong, column_wrong, d_logits, d_scale_partials),
                *(first_row, *block, len(rows), len(columns)),
                **tiles,
                PADDING=PADDING,
            )
            sides = row_tiles + (column_tiles if with_columns else 0)
            launch(
                info_nce_products_kernel,
                (sides * cdiv(rows.shape[1], product_tiles["BLOCK_N"]),),
                *(d_logits, rows, columns, d_rows, d_columns if with_columns else None, scale, d_loss, weight),
                *(*block, int(column_start > 0), int(row_start > 0)),
                **product_tiles,
            )
    return d_rows, d_columns, d_scale_partials.sum() * d_loss * weight


def _scale(logit_scale: Tensor) -> Tensor:
    """Return exp(logit_scale), more accurate than a kernel's, and never 0: that times -inf is no number."""
    return logit_scale.float().exp().clamp_min(torch.finfo(torch.float32).tiny)


def _blocks(count: int, most: int) -> Iterator[tuple[int, int]]:
    """First and end of every run of ``most`` among ``count``."""
    return ((start, min(start + most, count)) for start in range(0, count, most))


def _tiles(embeddings: Tensor, columns: int) -> dict[str, Any]:
    """Tiles by dtype: float32 is three TF32 products of its upper and lower halves, which take registers of their own.

    Hence fewer ``columns``; so has backward's tile, which holds three numbers an entry.
    """
    wide = embeddings.dtype == torch.float32
    return {
        "D": embeddings.shape[1],
        "BLOCK_M": PADDING,
        "BLOCK_N": 64 if wide else columns,
        "BLOCK_K": 32 if wide else 64,
        "PRECISION": "tf32x3" if wide else "ieee",
        "STAGES": 3,
        "num_warps": 8,
    }


def _merge(partials: Tensor, tiles: int, wrong: Tensor, scale: Tensor, start: int, end: int, *, add: bool) -> None:
    launch(
        info_nce_merge_kernel,
        (cdiv(end - start, 64),),
        *(partials, wrong, scale, tiles, start, end, wrong.shape[1], int(add)),
        BLOCK_TILES=32,
        BLOCK=64,
    )


def _pairs_output(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.new_empty(len(rows), dtype=torch.float32)


def _wrong_outputs(rows: Tensor, columns: Tensor, logit_scale: Tensor, first_row: int) -> tuple[Tensor, Tensor]:
    row_wrong, column_wrong = (side.new_empty((2, len(side)), dtype=torch.float32) for side in (rows, columns))
    return row_wrong, column_wrong


def _gradients_outputs(
    rows: Tensor,
    columns: Tensor,
    pairs: Tensor,
    row_wrong: Tensor,
    column_wrong: Tensor,
    logit_scale: Tensor,
    d_loss: Tensor,
    first_row: int,
    halved: bool,
    with_columns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    d_columns = torch.empty_like(columns, dtype=torch.float32) if with_columns else pairs.new_empty(0)
    return torch.empty_like(rows, dtype=torch.float32), d_columns, pairs.new_empty(())


info_nce_pairs_op = define("info_nce_pairs(Tensor rows, Tensor columns) -> Tensor", info_nce_pairs, _pairs_output)
info_nce_wrong_op = define(
    "info_nce_wrong(Tensor rows, Tensor columns, Tensor logit_scale, SymInt first_row) -> (Tensor, Tensor)",
    info_nce_wrong,
    _wrong_outputs,
)
info_nce_gradients_op = define(
    "info_nce_gradients(Tensor rows, Tensor columns, Tensor pairs, Tensor row_wrong, Tensor column_wrong, "
    "Tensor logit_scale, Tensor d_loss, SymInt first_row, bool halved, bool with_columns) -> (Tensor, Tensor, Tensor)",
    info_nce_gradients,
    _gradients_outputs,
)
