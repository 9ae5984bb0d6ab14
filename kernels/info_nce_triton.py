"""Forward kernels of :mod:`.info_nce`, launched by :mod:`.info_nce_ops`, and what backward's share with them.

All is told apart from the right pair: with b the similarity of i's best wrong partner and t the sum over the wrong ones
of exp(s (similarity - b)), the log odds that i takes a wrong one are s (b - similarity of the pair) + log t, and its
probability of j is their sigmoid times exp(s (similarity - b)) / t. So nothing large cancels, however far the pairs are
apart, and the temperature's gradient needs no logit of a pair. Rows and columns have a best partner of their own in
every tile: an entry costs two exponentials, and neither unit embeddings nor a bounded scale are taken for granted.
"""

# Triton types neither its ranges as iterable nor constants as what a kernel takes for them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from .triton_runtime import jit, tl


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


@jit(do_not_specialize=["first_row", "row_start", "row_end", "column_start", "column_end"])
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
    row_tile, column_tile = place_of(row_tiles, column_tiles)
    row = row_start + row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_start + column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    similarity = similarity_of(
        *(rows, columns, row_start, row_end, column_start, column_end),
        *(row - row_start, column - column_start, D, BLOCK_K, PRECISION, STAGES),
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


@jit
def place_of(row_tiles, column_tiles):
    """Row and column tile of this program; 8 of rows take turns, so that programs at work share what they read."""
    in_group = 8 * column_tiles
    group, place = tl.program_id(0) // in_group, tl.program_id(0) % in_group
    size = tl.minimum(row_tiles - group * 8, 8)
    return group * 8 + place % size, place // size


@jit
def similarity_of(
    rows,
    columns,
    row_start,
    row_end,
    column_start,
    column_end,
    row,  # from row_start on
    column,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Products of some rows and columns of a block; past its end they are those of the last."""
    total = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for start in tl.range(0, D, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        a = embeddings_of(rows, row_start, row_end, row, k, D, BLOCK_K)
        b = embeddings_of(columns, column_start, column_end, column, k, D, BLOCK_K)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@jit
def embeddings_of(tensor, start, end, row, d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Components ``d`` of rows of a block, the last instead of one past the end; zero beyond the width."""
    offsets = tl.minimum(row, end - start - 1)[:, None] * D + d[None, :]  # 32-bit
    places = tensor + tl.cast(start, tl.int64) * D + offsets
    if D % BLOCK_D == 0:
        return tl.load(places)
    return tl.load(places, (d < D)[None, :], other=0.0)


@jit
def _best_and_total(best, total, scale_2, AXIS: tl.constexpr):
    """Bring sums ``total``, each relative to its ``best``, to the largest along an axis; -inf and 0 of no partner."""
    largest = tl.max(best, AXIS)
    finite = tl.where(largest == -float("inf"), 0.0, largest)
    return largest, tl.sum(total * tl.exp2((best - tl.expand_dims(finite, AXIS)) * scale_2), AXIS)
