"""Kernels of :mod:`.info_nce`, launched by :mod:`.info_nce_ops`: a tile of similarities serves both directions.

All of the loss is told apart from the right pair: with b the similarity of i's best wrong partner and
t = Σⱼ exp(s (similarity - b)), j ≠ i, the log odds that i takes a wrong one are s (b - similarity of pair i) + log t, and
its probability of j is the sigmoid of these times exp(s (similarity - b)) / t. So nothing large cancels, however far the
pairs are apart, and the temperature's gradient needs no logit of a pair. Rows and columns have a largest entry of their
own in every tile: an entry costs two exponentials, and neither unit embeddings nor a bounded scale are taken for granted.

Backward writes a block of the logits' gradient to a scratch buffer that fits the L2, from which one launch of products
adds to the gradients of both sides: the similarity is computed once for both, and no program's sum is too wide for its
registers. Sums are float32, in a fixed order.
"""

# Triton does not type its ranges as iterable.
# pyright: reportGeneralTypeIssues=false

from .triton_runtime import jit, tl

_BLOCK = ["first_row", "row_start", "row_end", "column_start", "column_end"]


@jit(do_not_specialize=["count"])
def info_nce_pairs_kernel(
    rows,  # [N, D]
    columns,  # [N, D]
    pairs,  # float32 [N]
    count,
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Multiply every row by the column it belongs to."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = (row < count)[:, None] & (d < D)[None, :]
        offsets = row.to(tl.int64)[:, None] * D + d[None, :]
        a = tl.load(rows + offsets, mask, other=0.0).to(tl.float32)
        b = tl.load(columns + offsets, mask, other=0.0).to(tl.float32)
        total += tl.sum(a * b, 1)
    tl.store(pairs + row, total, row < count)


@jit(do_not_specialize=_BLOCK)
def info_nce_fwd_kernel(
    rows,  # [n, D]
    columns,  # [N, D]
    scale,  # float32 []
    row_partials,  # float32 [2, column tiles, rows of the block]: b and t of a tile's columns
    column_partials,  # float32 [2, row tiles, columns of the block]
    first_row,  # the column that row 0 belongs to
    row_start,  # of the block
    row_end,
    column_start,
    column_end,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """What a tile's wrong pairs are to its rows and to its columns."""
    row_tiles, column_tiles = tl.cdiv(row_end - row_start, BLOCK_M), tl.cdiv(column_end - column_start, BLOCK_N)
    row_tile, column_tile = _place(row_tiles, column_tiles)
    row = row_start + row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_start + column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    similarity = _similarity(
        rows, columns, row, column, row_end, column_end, D, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, STAGES
    )
    in_row, in_column = row < row_end, column < column_end
    wrong = ((first_row + row)[:, None] != column[None, :]) & in_row[:, None] & in_column[None, :]
    similarity = tl.where(wrong, similarity, -float("inf"))
    scale_2 = tl.load(scale) * 1.4426950408889634
    count = row_end - row_start
    place = row_partials + column_tile.to(tl.int64) * count + row - row_start
    best, total = _best_and_total(similarity, 1.0, scale_2, 1)
    tl.store(place, best, in_row)
    tl.store(place + column_tiles.to(tl.int64) * count, total, in_row)
    count = column_end - column_start
    place = column_partials + row_tile.to(tl.int64) * count + column - column_start
    best, total = _best_and_total(similarity, 1.0, scale_2, 0)
    tl.store(place, best, in_column)
    tl.store(place + row_tiles.to(tl.int64) * count, total, in_column)


@jit(do_not_specialize=["tiles", "start", "end", "count", "add"])
def info_nce_merge_kernel(
    partials,  # float32 [2, tiles, end - start]
    wrong,  # float32 [2, count]: b and t
    scale,  # float32 []
    tiles,
    start,  # of the entries of wrong that are meant
    end,
    count,
    add,  # whether these hold what other blocks gave
    BLOCK_TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bring the sums of all tiles, and those before, to one best partner."""
    scale_2 = tl.load(scale) * 1.4426950408889634
    place = start + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < end
    best, total = tl.zeros((BLOCK,), tl.float32) - float("inf"), tl.zeros((BLOCK,), tl.float32)
    if add != 0:
        best = tl.load(wrong + place, inside, other=0.0)
        total = tl.load(wrong + count + place, inside, other=0.0)
    for first in range(0, tiles, BLOCK_TILES):
        tile = first + tl.arange(0, BLOCK_TILES)
        offsets = tile.to(tl.int64)[:, None] * (end - start) + (place - start)[None, :]
        mask = (tile < tiles)[:, None] & inside[None, :]
        bests = tl.load(partials + offsets, mask, other=-float("inf"))
        totals = tl.load(partials + tl.cast(tiles, tl.int64) * (end - start) + offsets, mask, other=0.0)
        here, share = _best_and_total(bests, totals, scale_2, 0)
        best, total = _best_and_total(tl.join(best, here), tl.join(total, share), scale_2, 1)
    tl.store(wrong + place, best, inside)
    tl.store(wrong + count + place, total, inside)


@jit(do_not_specialize=[*_BLOCK, "count", "all_count"])
def info_nce_bwd_kernel(
    rows,  # [n, D]
    columns,  # [N, D]
    pairs,  # float32 [N]: similarity of every pair
    scale,  # float32 []
    row_wrong,  # float32 [2, n]: b and t of every row
    column_wrong,  # float32 [2, N]
    d_logits,  # [rows of the block, its columns], both padded to multiples of PADDING; zero there
    d_scale_partials,  # float32 [tiles], added to
    first_row,
    row_start,
    row_end,
    column_start,
    column_end,
    count,  # n
    all_count,  # N
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    PADDING: tl.constexpr,
):
    """Gradient of the summed loss of both directions with respect to a tile of logits, and its share of d(log s)."""
    row_tiles = tl.cdiv(row_end - row_start, PADDING) * (PADDING // BLOCK_M)
    width = tl.cdiv(column_end - column_start, PADDING) * PADDING
    row_tile, column_tile = _place(row_tiles, width // BLOCK_N)
    row = row_start + row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_start + column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    similarity = _similarity(
        rows, columns, row, column, row_end, column_end, D, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, STAGES
    )
    in_row, in_column = row < row_end, column < column_end
    own = (first_row + row)[:, None] == column[None, :]
    inside = in_row[:, None] & in_column[None, :]
    scale = tl.load(scale)
    scale_2 = scale * 1.4426950408889634

    row_pair = tl.load(pairs + first_row + row, in_row, other=0.0)
    row_best, row_odds, row_factor = _probability(row_wrong, row, in_row, count, row_pair, scale_2)
    x = tl.where(inside & (own == 0), (similarity - row_best[:, None]) * scale_2, -float("inf"))
    d = tl.exp2(x) * row_factor[:, None]
    along = tl.sum(d * (similarity - row_pair[:, None]), 1)
    along = tl.sum(along)

    column_pair = tl.load(pairs + column, in_column, other=0.0)
    column_best, column_odds, column_factor = _probability(
        column_wrong, column, in_column, all_count, column_pair, scale_2
    )
    x = tl.where(inside & (own == 0), (similarity - column_best[None, :]) * scale_2, -float("inf"))
    p = tl.exp2(x) * column_factor[None, :]
    along += tl.sum(tl.sum(p * (similarity - column_pair[None, :]), 1))
    d = tl.where(inside & own, -row_odds[:, None] - column_odds[None, :], d + p)

    offsets = (row - row_start)[:, None] * width + (column - column_start)[None, :]
    tl.store(d_logits + offsets, d.to(d_logits.dtype.element_ty))
    share = d_scale_partials + tl.program_id(0)
    tl.store(share, tl.load(share) + along * scale)


@jit(do_not_specialize=["row_start", "row_end", "column_start", "column_end", "add_rows", "add_columns"])
def info_nce_products_kernel(
    d_logits,  # [rows of the block, its columns], both padded to multiples of BLOCK_M
    rows,  # [n, D]
    columns,  # [N, D]
    d_rows,  # float32 [n, D]
    d_columns,  # float32 [N, D] or None
    scale,  # float32 []
    d_loss,  # []
    weight,  # of a pair in the loss
    row_start,
    row_end,
    column_start,
    column_end,
    add_rows,  # whether d_rows holds what other blocks gave
    add_columns,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Multiply a block of the logits' gradient by the columns and, in programs of their own, its transpose by the rows.

    Both in one launch: the programs of one side alone seldom fill the device.
    """
    factor = tl.load(scale) * tl.load(d_loss).to(tl.float32) * weight
    row_tiles = tl.cdiv(row_end - row_start, BLOCK_M)
    column_tiles = tl.cdiv(column_end - column_start, BLOCK_M)
    width = column_tiles * BLOCK_M
    blocks_of_d = tl.cdiv(D, BLOCK_N)
    program = tl.program_id(0)
    if program < row_tiles * blocks_of_d:
        local = program // blocks_of_d * BLOCK_M + tl.arange(0, BLOCK_M)
        d = program % blocks_of_d * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in tl.range(0, width, BLOCK_K, num_stages=STAGES):
            k = start + tl.arange(0, BLOCK_K)
            a = tl.load(d_logits + local[:, None] * width + k[None, :])
            b = _embeddings(columns, column_start + k, column_end, d, D, BLOCK_N)
            total = tl.dot(a, b, total, input_precision=PRECISION)
        _accumulate(d_rows, row_start + local, row_end, d, D, total * factor, add_rows)
    elif d_columns is not None:
        program -= row_tiles * blocks_of_d
        local = program // blocks_of_d * BLOCK_M + tl.arange(0, BLOCK_M)
        d = program % blocks_of_d * BLOCK_N + tl.arange(0, BLOCK_N)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in tl.range(0, row_tiles * BLOCK_M, BLOCK_K, num_stages=STAGES):
            k = start + tl.arange(0, BLOCK_K)
            a = tl.load(d_logits + k[:, None] * width + local[None, :])
            b = _embeddings(rows, row_start + k, row_end, d, D, BLOCK_N)
            total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
        _accumulate(d_columns, column_start + local, column_end, d, D, total * factor, add_columns)


@jit
def _place(row_tiles, column_tiles):
    """Row and column tile of this program: 8 tiles of rows take turns, so that programs at work share what they read."""
    in_group = 8 * column_tiles
    group, place = tl.program_id(0) // in_group, tl.program_id(0) % in_group
    size = tl.minimum(row_tiles - group * 8, 8)
    return group * 8 + place % size, place // size


@jit
def _similarity(
    rows,
    columns,
    row,
    column,
    row_end,
    column_end,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Products of a tile's rows and columns ``[BLOCK_M, BLOCK_N]``; past the end they are those of the last."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in tl.range(0, D, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        a = _embeddings(rows, row, row_end, k, D, BLOCK_K)
        b = _embeddings(columns, column, column_end, k, D, BLOCK_K)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@jit
def _embeddings(tensor, row, end, d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Components ``d`` of some rows, the last instead of one past the end; zero beyond the width."""
    places = tensor + tl.minimum(row, end - 1).to(tl.int64)[:, None] * D + d[None, :]
    if D % BLOCK_D == 0:
        return tl.load(places)
    return tl.load(places, (d < D)[None, :], other=0.0)


@jit
def _accumulate(tensor, row, end, d, D: tl.constexpr, values, add):
    """Write float32 ``values``, or add them where ``add`` is not 0."""
    mask = (row < end)[:, None] & (d < D)[None, :]
    places = tensor + row.to(tl.int64)[:, None] * D + d[None, :]
    if add != 0:
        values += tl.load(places, mask, other=0.0)
    tl.store(places, values, mask)


@jit
def _best_and_total(best, total, scale_2, AXIS: tl.constexpr):
    """Bring sums ``total``, each relative to its ``best``, to the largest along an axis; -inf and 0 of no partner."""
    largest = tl.max(best, AXIS)
    finite = tl.where(largest == -float("inf"), 0.0, largest)
    return largest, tl.sum(total * tl.exp2((best - tl.expand_dims(finite, AXIS)) * scale_2), AXIS)


@jit
def _probability(wrong, place, inside, count, pair, scale_2):
    """Best wrong partner, probability of a wrong one, and what exp(s (similarity - best)) is multiplied by for a p."""
    best = tl.load(wrong + place, inside, other=0.0)
    total = tl.load(wrong + count + place, inside, other=1.0)
    any_wrong = 1.0 / (1.0 + tl.exp2((pair - best) * scale_2) / total)
    return best, any_wrong, any_wrong / tl.where(total == 0.0, 1.0, total)  # no partner: 0, not 0 / 0
