"""The torch ops of :mod:`.attention_pool`: its kernels on the tokens, matrix products on what was pooled."""

import math

import torch
from torch import Tensor

from .attention_pool_triton import attention_pool_bwd_kernel, attention_pool_fwd_kernel
from .library import define
from .partial_sums import sum_partials
from .triton_runtime import cdiv, launch, next_power_of_two, processors

MAX_WIDTH = 1024
MAX_QUERY_BYTES = 32_768
"""Limits of the width and of the queries of all heads (8 at least), which lie in a processor's memory beside tokens."""


def attention_pool_fwd(
    hidden: Tensor,
    query: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    heads: int,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    sequences: int,
    longest: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pool contiguous ``hidden`` ``[tokens, D]``, multiplying in ``dtype``: out ``[B, D]`` and what backward needs.

    That is u without 1 / √d ``[heads, D]``, pooled tokens float32 ``[heads, B, D]`` and statistics ``[2, heads, B]``.
    Either ``mask`` or ``cu_seqlens`` is given; ``longest`` is a bound of the lengths, of padded sequences their slots.
    """
    out, absorbed, pooled, statistics = _fwd_outputs(
        hidden, query, key_weight, value_weight, value_bias, heads, mask, cu_seqlens, sequences, longest, dtype
    )
    width = hidden.shape[1]
    head_dim = width // heads
    queries = query.to(dtype).view(heads, 1, head_dim)
    torch.bmm(queries, _by_head(key_weight, heads, dtype), out=absorbed.view(heads, 1, width))
    # Two programs share a processor, each with two blocks of tokens on their way; of sequences hardly longer than a
    # block three, with one each.
    stages = 3 if dtype.itemsize == 2 and longest > 128 else 2
    launch(
        attention_pool_fwd_kernel,
        (sequences,),
        *(hidden, absorbed, mask, cu_seqlens, pooled, statistics, sequences, longest, _scales(head_dim)[0]),
        **_tiles(width, heads, dtype),
        STAGES=stages,
    )
    bias, values = value_bias.to(dtype).view(heads, 1, head_dim), _by_head(value_weight, heads, dtype)
    by_head = out.view(sequences, heads, head_dim).transpose(0, 1)
    torch.baddbmm(bias, pooled.to(dtype), values.transpose(1, 2), out=by_head)
    return out, absorbed, pooled, statistics


def attention_pool_bwd(
    d_out: Tensor,
    hidden: Tensor,
    query: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    absorbed: Tensor,
    pooled: Tensor,
    statistics: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    longest: int,
    key_dtype: torch.dtype,
    value_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of hidden, query, key weight (in ``key_dtype``), value weight and bias (``value_dtype``)."""
    (heads, sequences, width), dtype = pooled.shape, absorbed.dtype
    d_values = d_out.view(sequences, heads, width // heads).transpose(0, 1)
    d_pooled = torch.bmm(d_values, _by_head(value_weight, heads, dtype))
    d_value_weight = torch.bmm(d_values.transpose(1, 2), pooled.to(dtype)).view(width, width)

    d_hidden = torch.empty_like(hidden)
    programs = min(sequences, 2 * processors(hidden.device))  # what runs at once
    partials = torch.empty((programs, heads * width), dtype=torch.float32, device=hidden.device)
    launch(
        attention_pool_bwd_kernel,
        (programs,),
        *(d_pooled, hidden, absorbed, mask, cu_seqlens, pooled, statistics, d_hidden, partials),
        *(sequences, longest, *_scales(width // heads)),
        **_tiles(width, heads, dtype),
        STAGES=2 if dtype.itemsize == 2 else 1,
    )
    d_absorbed = torch.empty((heads, width), dtype=torch.float32, device=hidden.device)
    sum_partials(partials, d_absorbed)
    d_query = torch.bmm(_by_head(key_weight, heads, dtype), d_absorbed.to(dtype).unsqueeze(2)).view(width)
    d_key_weight = (query.float().view(heads, width // heads, 1) * d_absorbed.unsqueeze(1)).view(width, width)
    return (
        d_hidden,
        d_query.to(query.dtype),
        d_key_weight.to(key_dtype),
        d_value_weight.to(value_dtype),
        d_out.sum(0, dtype=torch.float32).to(value_dtype),
    )


def _by_head(weight: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """Rows of ``weight`` ``[D, D]`` by head: ``[heads, head_dim, D]``."""
    return weight.to(dtype).unflatten(0, (heads, -1))


def _scales(head_dim: int) -> tuple[float, float]:
    """Factor of the scores as powers of 2, and that of their gradients."""
    return math.log2(math.e) / math.sqrt(head_dim), 1.0 / math.sqrt(head_dim)


def query_bytes(width: int, heads: int, dtype: torch.dtype) -> int:
    """Bytes that the queries of all heads take on the chip."""
    tiles = _tiles(width, heads, dtype)
    return tiles["BLOCKS"] * tiles["BLOCK_D"] * tiles["BLOCK_HEADS"] * dtype.itemsize


def _tiles(width: int, heads: int, dtype: torch.dtype) -> dict[str, int]:
    block, block_heads = max(next_power_of_two(min(width, 256)), 16), max(next_power_of_two(heads), 8)
    return {
        "D": width,
        "HEADS": heads,
        "BLOCK_HEADS": block_heads,
        "BLOCK_D": block,
        "BLOCKS": cdiv(width, block),
        "BLOCK_TOKENS": 32 if dtype.itemsize == 2 and block_heads == 8 else 16,
        "num_warps": 8,
    }


def _fwd_outputs(
    hidden: Tensor,
    query: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    heads: int,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    sequences: int,
    longest: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = hidden.shape[1]
    out, absorbed = (hidden.new_empty((rows, width), dtype=dtype) for rows in (sequences, heads))
    pooled = hidden.new_empty((heads, sequences, width), dtype=torch.float32)
    return out, absorbed, pooled, pooled.new_empty((2, heads, sequences))


def _bwd_outputs(
    d_out: Tensor,
    hidden: Tensor,
    query: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    absorbed: Tensor,
    pooled: Tensor,
    statistics: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    longest: int,
    key_dtype: torch.dtype,
    value_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_value_weight = torch.empty_like(value_weight, dtype=value_dtype)
    return (
        torch.empty_like(hidden),
        torch.empty_like(query),
        torch.empty_like(key_weight, dtype=key_dtype),
        d_value_weight,
        d_value_weight.new_empty(len(d_value_weight)),
    )


attention_pool_fwd_op = define(
    "attention_pool_fwd(Tensor hidden, Tensor query, Tensor key_weight, Tensor value_weight, Tensor value_bias, "
    "int heads, Tensor? mask, Tensor? cu_seqlens, SymInt sequences, SymInt longest, ScalarType dtype) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    attention_pool_fwd,
    _fwd_outputs,
)
attention_pool_bwd_op = define(
    "attention_pool_bwd(Tensor d_out, Tensor hidden, Tensor query, Tensor key_weight, Tensor value_weight, "
    "Tensor absorbed, Tensor pooled, Tensor statistics, Tensor? mask, Tensor? cu_seqlens, SymInt longest, "
    "ScalarType key_dtype, ScalarType value_dtype) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    attention_pool_bwd,
    _bwd_outputs,
)
