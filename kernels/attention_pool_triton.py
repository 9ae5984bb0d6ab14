"""Kernels of :mod:`.attention_pool`, their launchers and ops: no token is projected.

With u = W_kᵀ q / √d for each head, the score of a token h is u · h up to a constant the softmax does not see, and the
value projection of the pooled token is the pooled projection. What is left per token is one read in forward, one read
and one write in backward; the products with the weights are on ``[B, heads, D]``.

A program takes whole sequences and holds BLOCK_TOKENS whole tokens on the chip, because scores need them whole and
pooling needs them again: a second pass would read them from memory again, all programs' sequences being several times
the L2. Widths are cut into BLOCK_D columns, for 768 is no power of two and several short products run beside each
other where one long one would wait for itself.
"""

import math

import torch
from torch import Tensor

from .layer_norm_triton import sum_partials_kernel
from .library import define
from .triton_runtime import cdiv, jit, launch, next_power_of_two, processors, tl

MAX_WIDTH = 1024
MAX_HEADS = 16
"""A program's sums have to fit into its registers."""

_LOG2_E = 1.4426950408889634


@jit
def _first_and_count(sequence, slots, cu_seqlens):
    """Row of the sequence's first token, int64, and how many it has."""
    if cu_seqlens is None:
        return sequence.to(tl.int64) * slots, slots
    first = tl.load(cu_seqlens + sequence)
    return first.to(tl.int64), tl.load(cu_seqlens + sequence + 1) - first


@jit
def attention_pool_fwd_kernel(
    hidden,  # [tokens, D]
    absorbed,  # [HEADS, D]: u without the 1 / √d
    mask,  # bool [tokens] or None: packed
    cu_seqlens,  # int32 [sequences + 1] or None: padded
    pooled,  # float32 [HEADS, sequences, D]
    statistics,  # float32 [2, HEADS, sequences]: largest score in units of ln 2, sum of exponentials
    sequences,
    slots,  # of a padded sequence
    scale,  # log2(e) / √d
    D: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Pool one sequence: softmax over its tokens as they come, the sums rescaled whenever a larger score does."""
    sequence = tl.program_id(0)
    first, count = _first_and_count(sequence, slots, cu_seqlens)
    head, column = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_D)
    in_head = head < HEADS
    queries = ()
    sums = ()
    for block in tl.static_range(BLOCKS):
        c = block * BLOCK_D + column
        corner = (c < D)[:, None] & in_head[None, :]
        queries += (tl.load(absorbed + head[None, :] * D + c[:, None], corner, other=0.0),)
        sums += (tl.zeros((BLOCK_D, BLOCK_HEADS), tl.float32),)
    # Finite, as in the reference: a sequence of masked tokens alone is averaged.
    largest = tl.full((BLOCK_HEADS,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK_HEADS,), tl.float32)

    for start in tl.range(0, count, BLOCK_TOKENS, num_stages=STAGES):  # type: ignore[misc]
        token = start + tl.arange(0, BLOCK_TOKENS)
        in_sequence = token < count
        rows = (first + token) * D
        scores = tl.zeros((BLOCK_TOKENS, BLOCK_HEADS), tl.float32)
        tokens = ()
        for block in tl.static_range(BLOCKS):
            c = block * BLOCK_D + column
            tile = in_sequence[:, None] & (c < D)[None, :]
            x = tl.load(hidden + rows[:, None] + c[None, :], tile, other=0.0).to(absorbed.dtype.element_ty)
            scores += tl.dot(x, queries[block], input_precision=PRECISION)
            tokens += (x,)
        scores *= scale
        if mask is not None:
            valid = tl.load(mask + first + token, in_sequence, other=0)
            scores = tl.where(valid[:, None] != 0, scores, -3.0e38)
        scores = tl.where(in_sequence[:, None], scores, -float("inf"))

        new_largest = tl.maximum(largest, tl.max(scores, 0))
        decay = tl.exp2(largest - new_largest)
        weights = tl.exp2(scores - new_largest[None, :])
        total = total * decay + tl.sum(weights, 0)
        largest = new_largest
        rounded = weights.to(absorbed.dtype.element_ty)
        new_sums = ()
        for block in tl.static_range(BLOCKS):
            new_sums += (sums[block] * decay[None, :] + tl.dot(tl.trans(tokens[block]), rounded, input_precision=PRECISION),)
        sums = new_sums

    row = head * sequences + sequence
    tl.store(statistics + row, largest, in_head)
    tl.store(statistics + HEADS * sequences + row, total, in_head)
    share = 1.0 / tl.where(total > 0.0, total, 1.0)  # a sequence without tokens has no sums either
    for block in tl.static_range(BLOCKS):
        c = block * BLOCK_D + column
        corner = (c < D)[:, None] & in_head[None, :]
        tl.store(pooled + row.to(tl.int64)[None, :] * D + c[:, None], sums[block] * share[None, :], corner)


@jit
def attention_pool_bwd_kernel(
    d_pooled,  # [HEADS, sequences, D]
    hidden,  # [tokens, D]
    absorbed,  # [HEADS, D]: u without the 1 / √d
    mask,  # bool [tokens] or None: packed
    cu_seqlens,  # int32 [sequences + 1] or None: padded
    pooled,  # float32 [HEADS, sequences, D]
    statistics,  # float32 [2, HEADS, sequences]
    d_hidden,  # [tokens, D]
    partials,  # float32 [programs, HEADS, D]: each program's share of the gradient of absorbed
    sequences,
    slots,  # of a padded sequence
    scale,  # 1 / √d
    D: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Walk over every n-th sequence, n the number of programs.

    A matrix product has at least 16 rows: 8 heads' queries and the gradients of what they pooled share them.
    """
    head, column = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_D)
    in_head = head < HEADS
    pair = tl.arange(0, 2 * BLOCK_HEADS)
    paired_head, is_query = pair % BLOCK_HEADS, pair < BLOCK_HEADS
    in_pair = paired_head < HEADS
    dtype = absorbed.dtype.element_ty
    d_absorbed = ()
    for _ in tl.static_range(BLOCKS):
        d_absorbed += (tl.zeros((BLOCK_D, BLOCK_HEADS), tl.float32),)

    for sequence in tl.range(tl.program_id(0), sequences, tl.num_programs(0)):  # type: ignore[misc]
        first, count = _first_and_count(sequence, slots, cu_seqlens)
        row = (head * sequences + sequence).to(tl.int64)
        paired_row = (paired_head * sequences + sequence).to(tl.int64)
        largest = tl.load(statistics + row, in_head, other=0.0)
        share = 1.0 / tl.load(statistics + HEADS * sequences + row, in_head, other=1.0)
        along = tl.zeros((BLOCK_HEADS,), tl.float32)  # the weights' mean of their gradients
        vectors = ()
        for block in tl.static_range(BLOCKS):
            c = block * BLOCK_D + column
            in_column = (c < D)[:, None]
            corner = in_column & in_head[None, :]
            offsets = row[None, :] * D + c[:, None]
            d = tl.load(d_pooled + offsets, corner, other=0.0).to(tl.float32)
            along += tl.sum(d * tl.load(pooled + offsets, corner, other=0.0), 0)
            paired = in_column & in_pair[None, :]
            u = tl.load(absorbed + paired_head[None, :] * D + c[:, None], paired & is_query[None, :], other=0.0)
            v = tl.load(d_pooled + paired_row[None, :] * D + c[:, None], paired & (not is_query)[None, :], other=0.0)
            vectors += (u + v,)

        for start in tl.range(0, count, BLOCK_TOKENS, num_stages=STAGES):  # type: ignore[misc]
            token = start + tl.arange(0, BLOCK_TOKENS)
            in_sequence = token < count
            rows = (first + token) * D
            products = tl.zeros((BLOCK_TOKENS, 2 * BLOCK_HEADS), tl.float32)
            tokens = ()
            for block in tl.static_range(BLOCKS):
                c = block * BLOCK_D + column
                tile = in_sequence[:, None] & (c < D)[None, :]
                x = tl.load(hidden + rows[:, None] + c[None, :], tile, other=0.0).to(dtype)
                products += tl.dot(x, vectors[block], input_precision=PRECISION)
                tokens += (x,)
            halves = tl.permute(tl.reshape(products, (BLOCK_TOKENS, 2, BLOCK_HEADS)), (0, 2, 1))
            scores, d_weights = tl.split(halves)
            scores *= scale * 1.4426950408889634
            valid = in_sequence
            if mask is not None:
                valid = tl.load(mask + first + token, in_sequence, other=0) != 0
                scores = tl.where(valid[:, None], scores, -3.0e38)
            weights = tl.where(in_sequence[:, None], tl.exp2(scores - largest[None, :]) * share[None, :], 0.0)
            d_scores = tl.where(valid[:, None], weights * (d_weights - along[None, :]) * scale, 0.0)
            halves = tl.permute(tl.join(d_scores, weights), (0, 2, 1))
            factors = tl.reshape(halves, (BLOCK_TOKENS, 2 * BLOCK_HEADS)).to(dtype)
            rounded = d_scores.to(dtype)
            new_d_absorbed = ()
            for block in tl.static_range(BLOCKS):
                c = block * BLOCK_D + column
                tile = in_sequence[:, None] & (c < D)[None, :]
                d_x = tl.dot(factors, tl.trans(vectors[block]), input_precision=PRECISION)
                tl.store(d_hidden + rows[:, None] + c[None, :], d_x.to(d_hidden.dtype.element_ty), tile)
                new_d_absorbed += (d_absorbed[block] + tl.dot(tl.trans(tokens[block]), rounded, input_precision=PRECISION),)
            d_absorbed = new_d_absorbed

    out = partials + tl.program_id(0).to(tl.int64) * HEADS * D
    for block in tl.static_range(BLOCKS):
        c = block * BLOCK_D + column
        corner = (c < D)[:, None] & in_head[None, :]
        tl.store(out + head[None, :] * D + c[:, None], d_absorbed[block], corner)
