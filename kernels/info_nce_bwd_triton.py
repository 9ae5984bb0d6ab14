"""Backward kernels of :mod:`.info_nce`, launched by :mod:`.info_nce_ops`: a block of the logits' gradient at a time.

The block lies in a scratch buffer that fits the L2. One launch of products adds from it to the gradients of both sides:
the similarity is computed once for both, and no program's sum is too wide for its registers. Sums are float32, in a
fixed order.
"""

# Triton types neither its ranges as iterable nor constants as what a kernel takes for them.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from .info_nce_triton import embeddings_of, place_of, similarity_of
from .triton_runtime import jit, tl


@jit(do_not_specialize=["first_row", "row_start", "row_end", "column_start", "column_end", "count", "all_count"])
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
    row_tile, column_tile = place_of(row_tiles, width // BLOCK_N)
    row = row_start + row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_start + column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    similarity = similarity_of(
        *(rows, columns, row_start, row_end, column_start, column_end),
        *(row - row_start, column - column_start, D, BLOCK_K, PRECISION, STAGES),
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
    along = tl.sum(tl.sum(d * (similarity - row_pair[:, None]), 1))

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
            b = embeddings_of(columns, column_start, column_end, k, d, D, BLOCK_N)
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
            b = embeddings_of(rows, row_start, row_end, k, d, D, BLOCK_N)
            total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
        _accumulate(d_columns, column_start + local, column_end, d, D, total * factor, add_columns)


@jit
def _accumulate(tensor, row, end, d, D: tl.constexpr, values, add):
    """Write float32 ``values``, or add them where ``add`` is not 0."""
    mask = (row < end)[:, None] & (d < D)[None, :]
    places = tensor + row.to(tl.int64)[:, None] * D + d[None, :]
    if add != 0:
        values += tl.load(places, mask, other=0.0)
    tl.store(places, values, mask)


@jit
def _probability(wrong, place, inside, count, pair, scale_2):
    """Best wrong partner, probability of a wrong one, and what exp(s (similarity - best)) is multiplied by for a p."""
    best = tl.load(wrong + place, inside, other=0.0)
    total = tl.load(wrong + count + place, inside, other=1.0)
    any_wrong = 1.0 / (1.0 + tl.exp2((pair - best) * scale_2) / total)
    return best, any_wrong, any_wrong / tl.where(total == 0.0, 1.0, total)  # no partner: 0, not 0 / 0
