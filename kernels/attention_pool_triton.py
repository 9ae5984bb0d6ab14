"""Kernels of :mod:`.attention_pool`, launched by :mod:`.attention_pool_ops`: no token is projected.

With u = W_kᵀ q / √d for each head, the score of a token h is u · h, up to a constant that the softmax does not see; and
the pooled values are the values of what is pooled. So forward reads every token once, backward reads it once and writes
its gradient, and the products with the weights are on ``[heads, B, D]``.

A program takes whole sequences, so a short one waits for nobody, and the longest (1500 tokens) is not worth splitting.
It keeps BLOCK_TOKENS whole tokens on the chip: a score needs all of a token before any of it is pooled, and the
sequences in work are several times the L2, so a second pass would read memory again. Widths are cut into BLOCK_D
columns: 768 is no power of two, and the products of three blocks do not wait for each other's sums.
"""

# Triton types neither its ranges as iterable nor tuples of tensors.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from .triton_runtime import jit, tl


@jit
def _first_and_count(sequence, slots, cu_seqlens):
    """Row of a sequence's first token, int64, and how many it has; offsets from there are 32-bit."""
    if cu_seqlens is None:
        return tl.cast(sequence * slots, tl.int64), slots
    first = tl.load(cu_seqlens + sequence)
    return first.to(tl.int64), tl.load(cu_seqlens + sequence + 1) - first


@jit
def _hide(scores, valid):
    """Scores ``[tokens, heads]`` of masked tokens; finite, so that a sequence of these alone is averaged."""
    return tl.where(valid[:, None], scores, -3.0e38)


@jit(do_not_specialize=["sequences", "slots"])
def attention_pool_fwd_kernel(
    hidden,  # [tokens, D]
    absorbed,  # [HEADS, D]: u without 1 / √d
    mask,  # bool [tokens] or None: packed
    cu_seqlens,  # int32 [sequences + 1] or None: padded
    pooled,  # float32 [HEADS, sequences, D]
    statistics,  # float32 [2, HEADS, sequences]: largest score as a power of 2, sum of exponentials
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
):
    """Pool one sequence, its softmax rescaled whenever a larger score comes."""
    sequence = tl.program_id(0)
    first, count = _first_and_count(sequence, slots, cu_seqlens)
    head, column = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_D)
    in_head = head < HEADS
    dtype = absorbed.dtype.element_ty
    queries, sums = (), ()
    for block in tl.static_range(BLOCKS):
        c = block * BLOCK_D + column
        corner = (c < D)[:, None] & in_head[None, :]
        queries += (tl.load(absorbed + head[None, :] * D + c[:, None], corner, other=0.0),)
        sums += (tl.zeros((BLOCK_D, BLOCK_HEADS), tl.float32),)
    largest = tl.full((BLOCK_HEADS,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK_HEADS,), tl.float32)

    for start in tl.range(0, count, BLOCK_TOKENS, num_stages=STAGES):
        token = start + tl.arange(0, BLOCK_TOKENS)
        in_sequence = token < count
        rows = token * D
        scores = tl.zeros((BLOCK_TOKENS, BLOCK_HEADS), tl.float32)
        tokens = ()
        for block in tl.static_range(BLOCKS):
            c = block * BLOCK_D + column
            tile = in_sequence[:, None] & (c < D)[None, :]
            x = tl.load(hidden + first * D + (rows[:, None] + c[None, :]), tile, other=0.0).to(dtype)
            scores += tl.dot(x, queries[block], input_precision="ieee")
            tokens += (x,)
        scores *= scale
        if mask is not None:
            scores = _hide(scores, tl.load(mask + first + token, in_sequence, other=0) != 0)
        scores = tl.where(in_sequence[:, None], scores, -float("inf"))

        new_largest = tl.maximum(largest, tl.max(scores, 0))
        decay = tl.exp2(largest - new_largest)
        weights = tl.exp2(scores - new_largest[None, :])
        total = total * decay + tl.sum(weights, 0)
        largest = new_largest
        factors = weights.to(dtype)
        new_sums = ()
        for block in tl.static_range(BLOCKS):
            pooled_here = tl.dot(tl.trans(tokens[block]), factors, input_precision="ieee")
            new_sums += (sums[block] * decay[None, :] + pooled_here,)
        sums = new_sums

    row = (head * sequences + sequence).to(tl.int64)
    tl.store(statistics + row, largest, in_head)
    tl.store(statistics + HEADS * sequences + row, total, in_head)
    share = 1.0 / tl.where(total > 0.0, total, 1.0)  # a sequence without tokens pools to zero
    for block in tl.static_range(BLOCKS):
        c = block * BLOCK_D + column
        corner = (c < D)[:, None] & in_head[None, :]
        tl.store(pooled + row[None, :] * D + c[:, None], sums[block] * share[None, :], corner)


@jit(do_not_specialize=["sequences", "slots"])
def attention_pool_bwd_kernel(
    d_pooled,  # [HEADS, sequences, D]
    hidden,  # [tokens, D]
    absorbed,  # [HEADS, D]: u without 1 / √d
    mask,  # bool [tokens] or None: packed
    cu_seqlens,  # int32 [sequences + 1] or None: padded
    pooled,  # float32 [HEADS, sequences, D]
    statistics,  # float32 [2, HEADS, sequences]
    d_hidden,  # [tokens, D]
    partials,  # float32 [programs, HEADS, D]: each program's share of the gradient of absorbed
    sequences,
    slots,  # of a padded sequence
    scale,  # log2(e) / √d
    d_scale,  # 1 / √d
    D: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Walk over every n-th sequence, n the number of programs.

    Tensor cores multiply 16 columns at least: 8 queries and the gradients of what these pooled lie side by side.
    """
    head, column = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_D)
    side = tl.arange(0, 2 * BLOCK_HEADS)
    in_head, side_head, is_query = head < HEADS, side % BLOCK_HEADS, side < BLOCK_HEADS
    in_query, in_gradient = is_query & (side_head < HEADS), (side >= BLOCK_HEADS) & (side_head < HEADS)
    dtype = absorbed.dtype.element_ty
    d_absorbed = ()
    for _ in tl.static_range(BLOCKS):
        d_absorbed += (tl.zeros((BLOCK_D, BLOCK_HEADS), tl.float32),)

    for sequence in tl.range(tl.program_id(0), sequences, tl.num_programs(0)):
        first, count = _first_and_count(sequence, slots, cu_seqlens)
        row = (head * sequences + sequence).to(tl.int64)
        side_row = (side_head * sequences + sequence).to(tl.int64)
        largest = tl.load(statistics + row, in_head, other=0.0)
        share = 1.0 / tl.load(statistics + HEADS * sequences + row, in_head, other=1.0)
        mean = tl.zeros((BLOCK_HEADS,), tl.float32)  # of the weights' gradients, weighted
        vectors = ()
        for block in tl.static_range(BLOCKS):
            c = block * BLOCK_D + column
            in_column = (c < D)[:, None]
            at = row[None, :] * D + c[:, None]
            d = tl.load(d_pooled + at, in_column & in_head[None, :], other=0.0).to(tl.float32)
            mean += tl.sum(d * tl.load(pooled + at, in_column & in_head[None, :], other=0.0), 0)
            u = tl.load(absorbed + side_head[None, :] * D + c[:, None], in_column & in_query[None, :], other=0.0)
            v = tl.load(d_pooled + side_row[None, :] * D + c[:, None], in_column & in_gradient[None, :], other=0.0)
            vectors += (u + v,)
        rest = tl.zeros((BLOCK_HEADS,), tl.float32)

        for start in tl.range(0, count, BLOCK_TOKENS, num_stages=STAGES):
            token = start + tl.arange(0, BLOCK_TOKENS)
            in_sequence = token < count
            rows = token * D
            products = tl.zeros((BLOCK_TOKENS, 2 * BLOCK_HEADS), tl.float32)
            tokens = ()
            for block in tl.static_range(BLOCKS):
                c = block * BLOCK_D + column
                tile = in_sequence[:, None] & (c < D)[None, :]
                x = tl.load(hidden + first * D + (rows[:, None] + c[None, :]), tile, other=0.0).to(dtype)
                products += tl.dot(x, vectors[block], input_precision="ieee")
                tokens += (x,)
            sides = tl.permute(tl.reshape(products, (BLOCK_TOKENS, 2, BLOCK_HEADS)), (0, 2, 1))
            scores, d_weights = tl.split(sides)
            scores *= scale
            valid = in_sequence
            if mask is not None:
                valid = tl.load(mask + first + token, in_sequence, other=0) != 0
                scores = _hide(scores, valid)
            weights = tl.where(in_sequence[:, None], tl.exp2(scores - largest[None, :]) * share[None, :], 0.0)
            d_scores = tl.where(valid[:, None], weights * (d_weights - mean[None, :]) * d_scale, 0.0)
            sides = tl.permute(tl.join(d_scores, weights), (0, 2, 1))
            factors = tl.reshape(sides, (BLOCK_TOKENS, 2 * BLOCK_HEADS)).to(dtype)
            query_factors = d_scores.to(dtype)
            rest += tl.sum(query_factors.to(tl.float32), 0)
            new_d_absorbed = ()
            for block in tl.static_range(BLOCKS):
                c = block * BLOCK_D + column
                tile = in_sequence[:, None] & (c < D)[None, :]
                d_x = tl.dot(factors, tl.trans(vectors[block]), input_precision="ieee")
                tl.store(d_hidden + first * D + (rows[:, None] + c[None, :]), d_x.to(d_hidden.dtype.element_ty), tile)
                d_u = tl.dot(tl.trans(tokens[block]), query_factors, input_precision="ieee")
                new_d_absorbed += (d_absorbed[block] + d_u,)
            d_absorbed = new_d_absorbed

        # A sequence's score gradients add up to nothing; what rounding left over would multiply what its tokens have in
        # common, which can be far larger than what tells them apart.
        new_d_absorbed = ()
        for block in tl.static_range(BLOCKS):
            c = block * BLOCK_D + column
            corner = (c < D)[:, None] & in_head[None, :]
            common = tl.load(pooled + row[None, :] * D + c[:, None], corner, other=0.0)
            new_d_absorbed += (d_absorbed[block] - rest[None, :] * common,)
        d_absorbed = new_d_absorbed

    out = partials + tl.program_id(0).to(tl.int64) * HEADS * D
    for block in tl.static_range(BLOCKS):
        c = block * BLOCK_D + column
        corner = (c < D)[:, None] & in_head[None, :]
        tl.store(out + head[None, :] * D + c[:, None], d_absorbed[block], corner)
