"""Kernels of :mod:`.patch_embed`, their launchers and ops: the GEMM of the projection, its epilogue, its gradients.

Tiles are for 16-bit operands on tensor cores, where the bytes of tokens and pixels are the floor, not the arithmetic;
float32 is multiplied as float32 (``ieee``), exact and slow, in tiles small enough for the registers it then takes.
"""

import functools

import torch
from torch import Tensor

from .library import define
from .log_mel import FREQ_PATCHES
from .partial_sums import sum_partials
from .sincos import device_sincos, sincos_frequencies
from .triton_runtime import cdiv, jit, launch, processors, tl


@jit(do_not_specialize=["rows"])
def patch_embed_fwd_kernel(
    values,  # [rows, K]
    weight,  # [D, K], in the dtype of the products
    bias,  # [D]
    freq_embedding,  # [freqs, D]
    time,  # int64 [rows]
    freq,  # int64 [rows]
    frequencies,  # float32 [D / 2]
    tokens,  # [rows, D]
    rows,
    D: tl.constexpr,
    K: tl.constexpr,
    FREQS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Embed BLOCK_ROWS patches into BLOCK_HALF sine columns and the cosine columns of the same angles."""
    HALF: tl.constexpr = D // 2
    TILES: tl.constexpr = (HALF + BLOCK_HALF - 1) // BLOCK_HALF
    # Programs of the same patches run side by side and find them in the L2 cache.
    first_row = tl.program_id(0) // TILES * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)  # of the block: what is added to a pointer has 32 bits
    column = tl.program_id(0) % TILES * BLOCK_HALF + tl.arange(0, BLOCK_HALF)
    in_row, in_half = row < rows - first_row, column < HALF
    values += first_row.to(tl.int64) * K
    sines = tl.zeros((BLOCK_ROWS, BLOCK_HALF), tl.float32)
    cosines = tl.zeros((BLOCK_ROWS, BLOCK_HALF), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        pixels = tl.load(values + row[:, None] * K + k[None, :], in_row[:, None], other=0.0)
        pixels = pixels.to(weight.dtype.element_ty)
        w = weight + column[None, :] * K + k[:, None]
        sines = tl.dot(pixels, tl.load(w, in_half[None, :], other=0.0), sines, input_precision="ieee")
        w += HALF * K
        cosines = tl.dot(pixels, tl.load(w, in_half[None, :], other=0.0), cosines, input_precision="ieee")

    angle = tl.load(time + first_row + row, in_row, other=0).to(tl.float32)[:, None]
    sine, cosine = device_sincos(angle * tl.load(frequencies + column, in_half, other=0.0)[None, :])
    mask = in_row[:, None] & in_half[None, :]
    band = tl.load(freq + first_row + row, in_row, other=0).to(tl.int32)
    tokens += first_row.to(tl.int64) * D
    _finish(tokens, sines + sine, bias, freq_embedding, row, band, column, mask, D, FREQS)
    _finish(tokens, cosines + cosine, bias, freq_embedding, row, band, HALF + column, mask, D, FREQS)


@jit
def _finish(tokens, sums, bias, freq_embedding, row, band, column, mask, D: tl.constexpr, FREQS: tl.constexpr):
    """Add bias and frequency rows, NaN for a row that is not there, and write the tokens."""
    sums += tl.load(bias + column[None, :], mask, other=0.0).to(tl.float32)
    known = mask & ((band >= 0) & (band < FREQS))[:, None]
    freq_row = tl.load(freq_embedding + band[:, None] * D + column[None, :], known, other=float("nan"))
    sums += freq_row.to(tl.float32)
    tl.store(tokens + row[:, None] * D + column[None, :], sums.to(tokens.dtype.element_ty), mask)


@jit(do_not_specialize=["rows"])
def patch_embed_bwd_kernel(
    d_tokens,  # [rows, D]
    values,  # [rows, K]
    freq,  # int64 [rows]
    partials,  # float32 [splits, D * K + (FREQS + 1) * D]: shares in the gradients of weight, freq_embedding, bias
    rows,
    D: tl.constexpr,
    K: tl.constexpr,
    FREQS: tl.constexpr,
    PRODUCTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Walk over every n-th block of rows, n the number of splits, adding up all gradients of BLOCK_D features.

    The sums over the rows of each frequency, and over all, are products too: with columns of zeros and ones.
    """
    split, splits = tl.program_id(0), tl.num_programs(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    group = tl.arange(0, 16)  # a frequency each, then all of them; the narrowest tile there is
    in_d = d < D
    d_weight = tl.zeros((BLOCK_D, BLOCK_K), tl.float32)
    d_groups = tl.zeros((BLOCK_D, 16), tl.float32)
    for tile in tl.range(split, tl.cdiv(rows, BLOCK_ROWS), splits, num_stages=STAGES):  # type: ignore[misc]
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        in_row = row < rows
        offsets = row.to(tl.int64)
        gradient = tl.load(d_tokens + offsets[None, :] * D + d[:, None], in_d[:, None] & in_row[None, :], other=0.0)
        pixels = tl.load(values + offsets[:, None] * K + k[None, :], in_row[:, None], other=0.0)
        rounded = gradient.to(PRODUCTS)
        d_weight = tl.dot(rounded, pixels.to(PRODUCTS), d_weight, input_precision="ieee")
        band = tl.load(freq + row, in_row, other=0)
        members = ((band[:, None] == group[None, :]) | (group == FREQS)[None, :]).to(PRODUCTS)
        d_groups = tl.dot(rounded, members, d_groups, input_precision="ieee")
        if gradient.dtype != PRODUCTS:
            rest = (gradient - rounded.to(gradient.dtype)).to(PRODUCTS)  # these sums keep twice the digits
            d_groups = tl.dot(rest, members, d_groups, input_precision="ieee")
    share = partials + split.to(tl.int64) * (D * K + (FREQS + 1) * D)
    tl.store(share + d[:, None] * K + k[None, :], d_weight, in_d[:, None])
    if tl.program_id(2) == 0:
        tl.store(share + D * K + group[None, :] * D + d[:, None], d_groups, in_d[:, None] & (group <= FREQS)[None, :])


def patch_embed_fwd(
    values: Tensor,
    weight: Tensor,
    bias: Tensor,
    freq_embedding: Tensor,
    time: Tensor,
    freq: Tensor,
    products: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the forward kernel on contiguous ``[rows, 256]``: tokens ``[rows, D]`` of ``dtype``.

    Operands are rounded to ``products`` before they are multiplied: the pixels, which are many, as they are read, the
    weight, which every program reads, once.
    """
    tokens = _fwd_outputs(values, weight, bias, freq_embedding, time, freq, products, dtype)
    (rows, pixels), width = values.shape, weight.shape[0]
    exact = products == torch.float32
    block_rows, block_half, block_k = (64, 32, 16) if exact else (64, 64, 64)
    launch(
        patch_embed_fwd_kernel,
        (cdiv(rows, block_rows) * cdiv(width // 2, block_half),),
        *(values, weight.to(products), bias, freq_embedding, time, freq, _frequencies(width, values.device)),
        *(tokens, rows),
        D=width,
        K=pixels,
        FREQS=FREQ_PATCHES,
        BLOCK_ROWS=block_rows,
        BLOCK_HALF=block_half,
        BLOCK_K=block_k,
        num_warps=4 if exact else 8,
        num_stages=3,
    )
    return tokens


def patch_embed_bwd(
    d_tokens: Tensor,
    values: Tensor,
    freq: Tensor,
    products: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the backward kernels: gradients of weight ``[D, 256]``, freq_embedding ``[8, D]``, bias ``[D]``, in a row.

    Not cuBLAS: at this width the GEMM is bound by its bytes, and this one reads the tokens' gradient once for all three
    and needs no rounded copy of it.
    """
    d_parameters = _bwd_outputs(d_tokens, values, freq, products, dtype)
    (rows, width), pixels = d_tokens.shape, values.shape[1]
    exact = products == torch.float32
    block_rows, block_d, block_k = (16, 64, 64) if exact else (32, 128, 128)
    tiles = cdiv(width, block_d), cdiv(pixels, block_k)
    splits = min(cdiv(rows, block_rows), max(2 * processors(values.device) // (tiles[0] * tiles[1]), 2))
    partials = torch.empty((splits, len(d_parameters)), dtype=torch.float32, device=values.device)
    launch(
        patch_embed_bwd_kernel,
        (splits, *tiles),
        *(d_tokens, values, freq, partials, rows),
        D=width,
        K=pixels,
        FREQS=FREQ_PATCHES,
        PRODUCTS=getattr(tl, str(products).removeprefix("torch.")),
        BLOCK_ROWS=block_rows,
        BLOCK_D=block_d,
        BLOCK_K=block_k,
        STAGES=3,
        num_warps=4 if exact else 8,
    )
    sum_partials(partials, d_parameters)
    return d_parameters


_frequencies = functools.lru_cache(maxsize=8)(sincos_frequencies)


def _fwd_outputs(
    values: Tensor,
    weight: Tensor,
    bias: Tensor,
    freq_embedding: Tensor,
    time: Tensor,
    freq: Tensor,
    products: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    return values.new_empty((values.shape[0], weight.shape[0]), dtype=dtype)


def _bwd_outputs(d_tokens: Tensor, values: Tensor, freq: Tensor, products: torch.dtype, dtype: torch.dtype) -> Tensor:
    return d_tokens.new_empty(d_tokens.shape[1] * (values.shape[1] + FREQ_PATCHES + 1), dtype=dtype)


patch_embed_fwd_op = define(
    "patch_embed_fwd(Tensor values, Tensor weight, Tensor bias, Tensor freq_embedding, Tensor time, Tensor freq, "
    "ScalarType products, ScalarType dtype) -> Tensor",
    patch_embed_fwd,
    _fwd_outputs,
)
patch_embed_bwd_op = define(
    "patch_embed_bwd(Tensor d_tokens, Tensor values, Tensor freq, ScalarType products, ScalarType dtype) -> Tensor",
    patch_embed_bwd,
    _bwd_outputs,
)
