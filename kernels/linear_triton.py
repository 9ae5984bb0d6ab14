"""Kernels of linear layers: products with what surrounds them as epilogue, and their launchers and ops.

Two kernels of one design. ``linear_fwd`` adds the bias, activates and adds a residual; ``linear_dgrad`` multiplies by
the activation's derivative, makes the activation again and sums columns, for the layer below. Every program takes every
n-th tile of the output, n the number of programs. Tiles of the same rows come one after the other: of these widths all
weights lie in the L2 cache at once, and rows are read from memory once. Operands come through pointers, or, where
:mod:`.linear_tiles` says so, through tensor descriptors (the TMA unit of sm_90). Products are summed in float32, and
float32 is multiplied as three products of tf32 numbers, which together keep its digits.
"""

import torch
from torch import Tensor

from .activation import gate_and_slope
from .library import define
from .linear_tiles import Tile, linear_tile
from .partial_sums import sum_partials
from .triton_runtime import INTERPRETING, cdiv, jit, launch, processors, tensor_descriptor, tl

_FORWARD, _BACKWARD = tl.constexpr(True), tl.constexpr(False)
"""Whether the weight is transposed."""


@jit(do_not_specialize=["rows"])
def linear_fwd_kernel(
    x,  # [rows, K], or its descriptor
    weight,  # [N, K], or its descriptor
    bias,  # [N]
    residual,  # [rows, N] or None
    out,  # [rows, N]
    pre,  # [rows, N] or None
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    KIND: tl.constexpr,  # "" for none
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write pre = x weightᵀ + bias where somebody asks for it, and out = activation(pre) + residual."""
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tiles = tl.cdiv(rows, BLOCK_ROWS) * TILES_N
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):  # type: ignore[misc]
        first_row, first = tile // TILES_N * BLOCK_ROWS, tile % TILES_N * BLOCK_N
        sums = _product(
            x, weight, first_row, first, rows, N, K, _FORWARD, BLOCK_ROWS, BLOCK_N, BLOCK_K, DESCRIPTORS, PRECISION
        )
        parts = _parts(sums, BLOCK_ROWS, BLOCK_N, PARTS)
        for part in tl.static_range(PARTS):  # type: ignore[misc]
            base, offsets, mask, column = _place(first_row, first, part, rows, N, BLOCK_ROWS, BLOCK_N, PARTS)
            y = parts[part] + tl.load(bias + column, column < N, other=0.0).to(tl.float32)[None, :]
            if pre is not None:
                tl.store(pre + base + offsets, y.to(pre.dtype.element_ty), mask)
            if KIND != "":
                y = y.to(out.dtype.element_ty).to(tl.float32)  # what backward will read
                gate, _ = gate_and_slope(y, KIND)
                y *= gate
            if residual is not None:
                y += tl.load(residual + base + offsets, mask, other=0.0).to(tl.float32)
            tl.store(out + base + offsets, y.to(out.dtype.element_ty), mask)


@jit(do_not_specialize=["rows"])
def linear_dgrad_kernel(
    d_y,  # [rows, K], or its descriptor
    weight,  # [K, N], or its descriptor
    residual,  # [rows, N] or None
    pre,  # [rows, N] or None without an activation, as the next two
    d_x,  # [rows, N]
    value,  # [rows, N]
    partials,  # float32 [blocks of rows, N]
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    KIND: tl.constexpr,  # "" for none
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write d_x = (d_y weight) · activation'(pre) + residual, the product's sums over rows, value = activation(pre)."""
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tiles = tl.cdiv(rows, BLOCK_ROWS) * TILES_N
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):  # type: ignore[misc]
        first_row, first = tile // TILES_N * BLOCK_ROWS, tile % TILES_N * BLOCK_N
        sums = _product(
            d_y, weight, first_row, first, rows, N, K, _BACKWARD, BLOCK_ROWS, BLOCK_N, BLOCK_K, DESCRIPTORS, PRECISION
        )
        parts = _parts(sums, BLOCK_ROWS, BLOCK_N, PARTS)
        for part in tl.static_range(PARTS):  # type: ignore[misc]
            base, offsets, mask, column = _place(first_row, first, part, rows, N, BLOCK_ROWS, BLOCK_N, PARTS)
            d = parts[part]
            if KIND != "":
                inside = tl.load(pre + base + offsets, mask, other=0.0).to(tl.float32)
                gate, slope = gate_and_slope(inside, KIND)
                tl.store(value + base + offsets, (inside * gate).to(value.dtype.element_ty), mask)
                d *= slope
                share = partials + tl.cast(tile // TILES_N, tl.int64) * N + column
                tl.store(share, tl.sum(d, 0), column < N)  # rows beyond the last are zero
            if residual is not None:
                d += tl.load(residual + base + offsets, mask, other=0.0).to(tl.float32)
            tl.store(d_x + base + offsets, d.to(d_x.dtype.element_ty), mask)


@jit
def _product(
    x,
    weight,
    first_row,
    first,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Multiply BLOCK_ROWS rows of x by BLOCK_N columns of weight ``[K, N]``, or of the transpose of ``[N, K]``."""
    row, column, k = tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    in_row, in_column = row < rows - first_row, first + column < N
    if not DESCRIPTORS:
        x += tl.cast(first_row, tl.int64) * K  # row is of the block: what is added to a pointer has 32 bits
    sums = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if DESCRIPTORS:
            a = x.load([first_row, start])
            b = weight.load([first, start]).T if TRANSPOSED else weight.load([start, first])
        else:
            in_k = start + k < K
            a = tl.load(x + row[:, None] * K + (start + k)[None, :], in_row[:, None] & in_k[None, :], other=0.0)
            if TRANSPOSED:
                b = tl.load(
                    weight + (first + column)[None, :] * K + (start + k)[:, None],
                    in_k[:, None] & in_column[None, :],
                    other=0.0,
                )
            else:
                b = tl.load(
                    weight + (start + k)[:, None] * N + (first + column)[None, :],
                    in_k[:, None] & in_column[None, :],
                    other=0.0,
                )
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    return sums


@jit
def _parts(sums, BLOCK_ROWS: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr):
    """Cut a tile into PARTS (1, 2 or 4) of its columns: an epilogue of all at once would not fit the registers."""
    if PARTS == 1:
        return (sums,)
    elif PARTS == 2:  # noqa: RET505 - Triton compiles one branch of a chain
        return _halves(sums, BLOCK_ROWS, BLOCK_N)
    else:
        left, right = _halves(sums, BLOCK_ROWS, BLOCK_N)
        first, second = _halves(left, BLOCK_ROWS, BLOCK_N // 2)
        third, fourth = _halves(right, BLOCK_ROWS, BLOCK_N // 2)
        return (first, second, third, fourth)


@jit
def _halves(sums, BLOCK_ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    return sums.reshape(BLOCK_ROWS, 2, BLOCK_N // 2).permute(0, 2, 1).split()


@jit
def _place(
    first_row,
    first,
    part: tl.constexpr,
    rows,
    N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Where a part of a tile lies: its rows, the offsets of elements in them, which there are, and its columns."""
    WIDTH: tl.constexpr = BLOCK_N // PARTS
    row, column = tl.arange(0, BLOCK_ROWS), first + part * WIDTH + tl.arange(0, WIDTH)
    mask = (row < rows - first_row)[:, None] & (column < N)[None, :]
    return tl.cast(first_row, tl.int64) * N, row[:, None] * N + column[None, :], mask, column


def linear_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, kind: str, keep_pre: bool
) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel on contiguous tensors of one dtype: out, and with ``keep_pre`` pre, else ``[0]``."""
    return launch_linear_fwd(x, weight, bias, residual, kind, keep_pre, linear_tile("fwd", x, weight))


def launch_linear_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, kind: str, keep_pre: bool, tile: Tile
) -> tuple[Tensor, Tensor]:
    """Do what :func:`linear_fwd` does in tiles of the caller's choice."""
    out, pre = _fwd_outputs(x, weight, bias, residual, kind, keep_pre)
    (rows, inside), width = x.shape, weight.shape[0]
    blocks = (tile.rows, tile.depth), (tile.columns, tile.depth)
    launch(
        linear_fwd_kernel,
        (_programs(rows, width, tile, x.device),),
        *(_operand(x, blocks[0], tile), _operand(weight, blocks[1], tile), bias, residual),
        *(out, pre if keep_pre else None, rows),
        N=width,
        K=inside,
        KIND=kind,
        **_options(tile),
    )
    return out, pre


def linear_dgrad(
    d_y: Tensor, weight: Tensor, residual: Tensor | None, pre: Tensor | None, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel on contiguous tensors of one dtype: d_x, and the activation's value and float32 sums.

    ``weight`` is ``[K, N]`` as the forward pass has it, ``[out, in]``. Without ``pre`` the last two are ``[0]``.
    """
    return launch_linear_dgrad(d_y, weight, residual, pre, kind, linear_tile("dgrad", d_y, weight))


def launch_linear_dgrad(
    d_y: Tensor, weight: Tensor, residual: Tensor | None, pre: Tensor | None, kind: str, tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what :func:`linear_dgrad` does in tiles of the caller's choice."""
    d_x, value, sums = _dgrad_outputs(d_y, weight, residual, pre, kind)
    (rows, inside), width = d_y.shape, weight.shape[1]
    activated = pre is not None
    partials = sums.new_empty((cdiv(rows, tile.rows), width)) if activated else None
    blocks = (tile.rows, tile.depth), (tile.depth, tile.columns)
    launch(
        linear_dgrad_kernel,
        (_programs(rows, width, tile, d_y.device),),
        *(_operand(d_y, blocks[0], tile), _operand(weight, blocks[1], tile), residual, pre),
        *(d_x, value if activated else None, partials, rows),
        N=width,
        K=inside,
        KIND=kind,
        **_options(tile),
    )
    if partials is not None:
        sum_partials(partials, sums)
    return d_x, value, sums


def _programs(rows: int, width: int, tile: Tile, device: torch.device) -> int:
    tiles = cdiv(rows, tile.rows) * cdiv(width, tile.columns)
    return min(tiles, tile.programs * processors(device)) if tile.programs else tiles


def _operand(tensor: Tensor, block: tuple[int, int], tile: Tile) -> object:
    return tensor_descriptor(tensor, block) if tile.descriptors and tensor.numel() else tensor


def _options(tile: Tile) -> dict[str, object]:
    return {
        "BLOCK_ROWS": tile.rows,
        "BLOCK_N": tile.columns,
        "BLOCK_K": tile.depth,
        "PARTS": tile.parts,
        "DESCRIPTORS": tile.descriptors,
        "PRECISION": "ieee" if INTERPRETING else "tf32x3",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _fwd_outputs(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, kind: str, keep_pre: bool
) -> tuple[Tensor, Tensor]:
    shape = x.shape[0], weight.shape[0]
    return x.new_empty(shape), x.new_empty(shape if keep_pre else 0)


def _dgrad_outputs(
    d_y: Tensor, weight: Tensor, residual: Tensor | None, pre: Tensor | None, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    shape = d_y.shape[0], weight.shape[1]
    d_x, value = d_y.new_empty(shape), d_y.new_empty(0 if pre is None else shape)
    return d_x, value, d_y.new_empty(0 if pre is None else shape[1], dtype=torch.float32)


linear_fwd_op = define(
    "linear_fwd(Tensor x, Tensor weight, Tensor bias, Tensor? residual, str kind, bool keep_pre) -> (Tensor, Tensor)",
    linear_fwd,
    _fwd_outputs,
)
linear_dgrad_op = define(
    "linear_dgrad(Tensor d_y, Tensor weight, Tensor? residual, Tensor? pre, str kind) -> (Tensor, Tensor, Tensor)",
    linear_dgrad,
    _dgrad_outputs,
)
