"""Kernels of attention over packed sequences, for the dropout no library has and the dtypes they lack.

Flash attention (Dao et al. 2022) with an online softmax: scores stay in registers. The dropout mask is that of
:func:`~.dropout.attention_dropout`, one for all sequences and heads, drawn again in the backward pass. A program owns a
block of queries (forward, d query) or of keys (d key, d value), so that nothing is summed across programs and the same
call gives the same bits. Head dims are padded to a power of two inside: 96 costs what 128 does.

The softmax is handed to the backward pass as largest score and sum, not as the log of both: that would be rounded to
half a unit in its last place, an error that all weights of a query share, and sums over tokens would keep.
"""

from .counter_rng import device_fold, device_random_bits
from .triton_runtime import jit, tl

MAX_HEAD_DIM = 128
"""Widest head: its tiles have to fit into one program's registers."""

_CALL = ["queries", "blocks", "scale", "keep_scale", "threshold", "site_key"]


@jit(do_not_specialize=_CALL)
def attention_fwd_kernel(
    query,  # [Tq, H, d], rows and heads strided
    key,  # [Tk, H, d], likewise
    value,  # [Tk, H, d], likewise
    query_offsets,  # int32 [B + 1]
    key_offsets,  # int32 [B + 1]
    query_row,  # strides in elements
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    out,  # [Tq, H, d]
    statistics,  # float32 [H, 2, Tq]: a query's largest score, 1 / (sum of 2^(score - largest))
    queries,  # Tq
    heads,
    blocks,  # of queries in the longest sequence
    scale,  # log2(e) / sqrt(d)
    keep_scale,
    threshold,
    site_key,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Attend from BLOCK_Q queries of one head to the keys of their sequence."""
    block, head, sequence = _program(blocks, heads)
    first_query, query_count = _extent(query_offsets, sequence)
    first_key, key_count = _extent(key_offsets, sequence)
    if block * BLOCK_Q >= query_count:
        return
    i = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    q = _tile(query, first_query, i, query_count, query_row, head * query_head, d, HEAD_DIM)

    largest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    summed = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    end = tl.minimum(key_count, (block + 1) * BLOCK_Q) if CAUSAL else key_count
    for start in tl.range(0, end, BLOCK_K):  # type: ignore[misc]
        j = start + tl.arange(0, BLOCK_K)
        k = _tile(key, first_key, j, key_count, key_row, head * key_head, d, HEAD_DIM)
        v = _tile(value, first_key, j, key_count, value_row, head * value_head, d, HEAD_DIM)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(_seen(i[:, None], j[None, :], key_count, CAUSAL), scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp2(largest - new_largest)
        weights = tl.exp2(scores - new_largest[:, None])
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            weights = tl.where(_kept(i[:, None], j[None, :], site_key, threshold), weights * keep_scale, 0.0)
        summed = summed * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        largest = new_largest

    # A sequence without keys sums nothing: its queries get zeros.
    total = tl.where(total == 0.0, 1.0, total)
    _store(out, first_query, i, query_count, heads * HEAD_DIM, head * HEAD_DIM, d, HEAD_DIM, summed / total[:, None])
    row = 2 * head.to(tl.int64) * queries + first_query + i
    tl.store(statistics + row, largest, i < query_count)
    tl.store(statistics + row + queries, 1.0 / total, i < query_count)


@jit(do_not_specialize=_CALL)
def attention_bwd_query_kernel(
    d_out,  # [Tq, H, d]
    out,  # [Tq, H, d]
    query,
    key,
    value,
    query_offsets,
    key_offsets,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    statistics,  # float32 [H, 2, Tq]
    delta,  # float32 [H, Tq]: Σ p dp, which is d out · out, for the other kernel
    d_query,  # [Tq, H, d], rows and heads strided
    d_query_row,
    d_query_head,
    queries,
    heads,
    blocks,
    scale,
    keep_scale,
    threshold,
    site_key,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Gradient of BLOCK_Q queries of one head: ds = p (dp - delta), d query = ds key / sqrt(d)."""
    block, head, sequence = _program(blocks, heads)
    first_query, query_count = _extent(query_offsets, sequence)
    first_key, key_count = _extent(key_offsets, sequence)
    if block * BLOCK_Q >= query_count:
        return
    i = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    q = _tile(query, first_query, i, query_count, query_row, head * query_head, d, HEAD_DIM)
    d_o = _tile(d_out, first_query, i, query_count, heads * HEAD_DIM, head * HEAD_DIM, d, HEAD_DIM)
    o = _tile(out, first_query, i, query_count, heads * HEAD_DIM, head * HEAD_DIM, d, HEAD_DIM)
    row = head.to(tl.int64) * queries + first_query + i
    statistics_row = 2 * head.to(tl.int64) * queries + first_query + i
    largest = tl.load(statistics + statistics_row, i < query_count, other=0.0)
    share = tl.load(statistics + statistics_row + queries, i < query_count, other=0.0)
    end = tl.minimum(key_count, (block + 1) * BLOCK_Q) if CAUSAL else key_count
    if query.dtype.element_ty == tl.float32:
        # Summed over the weights that follow, so that a row of ds adds up to nothing: by d out · out it adds up to that
        # sum's rounding, which is multiplied by what all keys have in common. In 16 bits the rounding of ds hides it.
        d_total = tl.zeros((BLOCK_Q,), tl.float32)
        for start in tl.range(0, end, BLOCK_K):  # type: ignore[misc]
            j = start + tl.arange(0, BLOCK_K)
            k = _tile(key, first_key, j, key_count, key_row, head * key_head, d, HEAD_DIM)
            v = _tile(value, first_key, j, key_count, value_row, head * value_head, d, HEAD_DIM)
            weights, d_weights = _tile_weights(
                q, d_o, k, v, i, j, key_count, largest, scale, keep_scale, threshold, site_key, CAUSAL, DROPOUT
            )
            d_total += tl.sum(weights * d_weights, 1)
        d_total *= share
    else:
        d_total = tl.sum(d_o.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + row, d_total, i < query_count)

    d_q = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in tl.range(0, end, BLOCK_K):  # type: ignore[misc]
        j = start + tl.arange(0, BLOCK_K)
        k = _tile(key, first_key, j, key_count, key_row, head * key_head, d, HEAD_DIM)
        v = _tile(value, first_key, j, key_count, value_row, head * value_head, d, HEAD_DIM)
        weights, d_weights = _tile_weights(
            q, d_o, k, v, i, j, key_count, largest, scale, keep_scale, threshold, site_key, CAUSAL, DROPOUT
        )
        d_scores = weights * (d_weights - d_total[:, None])  # type: ignore[arg-type]
        d_q += tl.dot(d_scores.to(k.dtype), k, input_precision="ieee")

    d_q *= (share * (scale * 0.6931471805599453))[:, None]  # scale holds log2(e)
    _store(d_query, first_query, i, query_count, d_query_row, head * d_query_head, d, HEAD_DIM, d_q)


@jit(do_not_specialize=_CALL)
def attention_bwd_key_kernel(
    d_out,  # [Tq, H, d]
    query,
    key,
    value,
    query_offsets,
    key_offsets,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    statistics,  # float32 [H, 2, Tq]
    delta,  # float32 [H, Tq]
    d_key,  # [Tk, H, d], rows and heads strided
    d_key_row,
    d_key_head,
    d_value,  # [Tk, H, d], likewise
    d_value_row,
    d_value_head,
    queries,
    heads,
    blocks,  # of keys in the longest sequence
    scale,
    keep_scale,
    threshold,
    site_key,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Gradients of BLOCK_K keys and values of one head; all tiles of scores are transposed, ``[keys, queries]``."""
    block, head, sequence = _program(blocks, heads)
    first_query, query_count = _extent(query_offsets, sequence)
    first_key, key_count = _extent(key_offsets, sequence)
    if block * BLOCK_K >= key_count:
        return
    j = block * BLOCK_K + tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    k = _tile(key, first_key, j, key_count, key_row, head * key_head, d, HEAD_DIM)
    v = _tile(value, first_key, j, key_count, value_row, head * value_head, d, HEAD_DIM)

    d_k = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    d_v = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    begin = block * BLOCK_K // BLOCK_Q * BLOCK_Q if CAUSAL else 0
    for start in tl.range(begin, query_count, BLOCK_Q):  # type: ignore[misc]
        i = start + tl.arange(0, BLOCK_Q)
        q = _tile(query, first_query, i, query_count, query_row, head * query_head, d, HEAD_DIM)
        d_o = _tile(d_out, first_query, i, query_count, heads * HEAD_DIM, head * HEAD_DIM, d, HEAD_DIM)
        row = head.to(tl.int64) * queries + first_query + i
        statistics_row = 2 * head.to(tl.int64) * queries + first_query + i
        largest = tl.load(statistics + statistics_row, i < query_count, other=0.0)
        share = tl.load(statistics + statistics_row + queries, i < query_count, other=0.0)
        d_total = tl.load(delta + row, i < query_count, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
        seen = _seen(i[None, :], j[:, None], key_count, CAUSAL)
        weights = tl.where(seen, tl.exp2(scores - largest[None, :]) * share[None, :], 0.0)
        d_weights = tl.dot(v, tl.trans(d_o), input_precision="ieee")
        dropped = weights
        if DROPOUT:
            kept = _kept(i[None, :], j[:, None], site_key, threshold)
            dropped = tl.where(kept, weights * keep_scale, 0.0)
            d_weights = tl.where(kept, d_weights * keep_scale, 0.0)
        d_v += tl.dot(dropped.to(d_o.dtype), d_o, input_precision="ieee")
        d_scores = weights * (d_weights - d_total[None, :])
        d_k += tl.dot(d_scores.to(q.dtype), q, input_precision="ieee")

    d_k *= scale * 0.6931471805599453
    _store(d_key, first_key, j, key_count, d_key_row, head * d_key_head, d, HEAD_DIM, d_k)
    _store(d_value, first_key, j, key_count, d_value_row, head * d_value_head, d, HEAD_DIM, d_v)


@jit
def _tile_weights(
    q,
    d_o,
    k,
    v,
    i,
    j,
    key_count,
    largest,
    scale,
    keep_scale,
    threshold,
    site_key,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Weights of a tile ``[queries, keys]``, but for each query's share, and their gradients."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    weights = tl.where(_seen(i[:, None], j[None, :], key_count, CAUSAL), tl.exp2(scores - largest[:, None]), 0.0)
    d_weights = tl.dot(d_o, tl.trans(v), input_precision="ieee")
    if DROPOUT:
        d_weights = tl.where(_kept(i[:, None], j[None, :], site_key, threshold), d_weights * keep_scale, 0.0)
    return weights, d_weights


@jit
def _program(blocks, heads):
    """Which block, head and sequence this program has."""
    program = tl.program_id(0)
    return program % blocks, program // blocks % heads, program // (blocks * heads)


@jit
def _extent(offsets, sequence):
    """First row and number of rows of a sequence."""
    first = tl.load(offsets + sequence)
    return first, tl.load(offsets + sequence + 1) - first


@jit
def _tile(tensor, first, position, count, row_stride, head_offset, d, HEAD_DIM: tl.constexpr):
    """Rows ``first + position`` of one head, zero beyond ``count`` and beyond the head's width."""
    offsets = (first + position).to(tl.int64)[:, None] * row_stride + head_offset + d[None, :]
    return tl.load(tensor + offsets, (position < count)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)


@jit
def _store(tensor, first, position, count, row_stride, head_offset, d, HEAD_DIM: tl.constexpr, values):
    """Write what :func:`_tile` reads."""
    offsets = (first + position).to(tl.int64)[:, None] * row_stride + head_offset + d[None, :]
    mask = (position < count)[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(tensor + offsets, values.to(tensor.dtype.element_ty), mask)


@jit
def _seen(i, j, key_count, CAUSAL: tl.constexpr):
    """Whether query i sees key j; causal sequences have as many queries as keys."""
    return (j < key_count) & (i >= j) if CAUSAL else (j < key_count) & (i >= 0)


@jit
def _kept(i, j, site_key, threshold):
    """Which weights stay: the mask of :func:`~.dropout.attention_dropout`."""
    query_key = device_fold(site_key.to(tl.uint32), i.to(tl.int64))
    return device_random_bits(query_key, j) >= threshold.to(tl.uint32)
