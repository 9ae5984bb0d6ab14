"""Kernels of :mod:`.caption_loss` and the op that runs them between cuBLAS's products, a chunk of tokens at a time.

A chunk's logits ``[c, V]`` are written by a product, read by the kernel of the rows (loss and log-sum-exp), overwritten
by the kernel of the columns with the gradient of the logits, and read by the two products of the gradients. Nothing of
``[tokens, V]`` is ever in memory, and nothing waits for the host.

The vocabulary, 50 265, is no multiple of 8, as cuBLAS wants the sides and rows of what it multiplies. So the rows of
logits are padded (50 304), which costs nothing, and every product runs over the words up to the last multiple of 8, a
view of the weight, and over the few that remain: the weight is not copied, unless it is wider than the products.
"""

import math

import torch
from torch import Tensor

from .library import define
from .products import add_product_
from .triton_runtime import cdiv, jit, launch, processors, tl

LOGITS_BYTES = 2**29
"""Most memory for a chunk's logits: 5248 tokens of 50 265 words in bfloat16, whatever the number of tokens.

Every chunk reads and writes the weight's gradient, 8 V D bytes beside the 12 c V that its logits move: a tenth of it at
5000 tokens and D = 768. A smaller chunk pays more for it, and none that is worth launching fits the L2 cache.
"""
_CHUNK_MULTIPLE = 128
_ROW_MULTIPLE = 128
_WORD_MULTIPLE = 8
"""16 bytes of 16-bit numbers."""

ROW_TILE = {"BLOCK_ROWS": 4, "BLOCK_V": 1024, "num_warps": 8}
"""The bias is read once for four rows."""
COLUMN_TILE = {"BLOCK_ROWS": 4, "BLOCK_V": 512, "STAGES": 3, "num_warps": 4}
_COLUMN_PROGRAMS_TOGETHER = 6
"""Programs of a multiprocessor, whose registers hold six or seven."""
_LOG2_E, _LN_2 = tl.constexpr(math.log2(math.e)), tl.constexpr(math.log(2.0))


@jit
def _weight_of(token_weights, targets, row, in_row, V: tl.constexpr):
    """Return the rows' weights and targets; NaN is the weight of a token that counts and whose target is no word."""
    weight = tl.load(token_weights + row, in_row, other=0.0).to(tl.float32)
    target = tl.load(targets + row, in_row, other=0)
    return tl.where((weight != 0.0) & ((target < 0) | (target >= V)), float("nan"), weight), target


@jit(do_not_specialize=["rows"])
def caption_loss_row_kernel(
    logits,  # [rows, STRIDE], products without the bias
    bias,  # [V]
    targets,  # int64 [rows]
    token_weights,  # [rows]
    losses,  # float32 [rows]
    log_sums,  # float32 [rows], to the base 2; infinite where a row does not count
    rows,
    V: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Walk once along BLOCK_ROWS rows: loss and log-sum-exp, whose shift follows the largest logit so far.

    Logits are taken to the base 2, as the GPU's exponential is: the factor and the bias are one multiply-add.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_row = row < rows
    weight, target = _weight_of(token_weights, targets, row, in_row, V)
    counted = weight != 0.0
    place = logits + row.to(tl.int64) * STRIDE
    largest = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_V), tl.float32)
    for first in range(0, V, BLOCK_V):
        column = first + tl.arange(0, BLOCK_V)
        mask = in_row[:, None] & (column < V)[None, :]
        shift = tl.load(bias + column, column < V, other=0.0).to(tl.float32) * _LOG2_E
        product = tl.load(place[:, None] + column[None, :], mask, other=float("-inf")).to(tl.float32)
        logit = product * _LOG2_E + shift[None, :]
        before = largest
        largest = tl.maximum(largest, tl.max(logit, 1))
        sums = sums * tl.exp2(before - largest)[:, None] + tl.exp2(logit - largest[:, None])
    log_sum = largest + tl.log2(tl.sum(sums, 1))
    is_word = counted & (weight == weight)
    of_target = tl.load(place + target, is_word, other=0.0).to(tl.float32)
    of_target += tl.load(bias + target, is_word, other=0.0).to(tl.float32)
    tl.store(losses + row, tl.where(counted, weight * (log_sum * _LN_2 - of_target), 0.0), in_row)
    tl.store(log_sums + row, tl.where(counted, log_sum, float("inf")), in_row)


@jit(do_not_specialize=["rows"])
def caption_loss_column_kernel(
    logits,  # [rows, STRIDE], products without the bias; overwritten with the gradient
    bias,  # [V]
    targets,  # int64 [rows]
    token_weights,  # [rows]
    log_sums,  # float32 [rows], as the other kernel left them: where one is infinite, the gradient is 0
    bias_partials,  # float32 [splits, V] or None: nobody asks for the bias's gradient
    rows,
    gradient_scale,
    V: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Walk down BLOCK_V columns, every n-th block of rows, n the number of splits: weight · (softmax - one-hot).

    The columns' sums are added to what earlier chunks left in the split's ``bias_partials``.
    """
    column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_column = column < V
    shift = tl.load(bias + column, in_column, other=0.0).to(tl.float32) * _LOG2_E
    sums = tl.zeros((BLOCK_ROWS, BLOCK_V), tl.float32)
    blocks = tl.cdiv(rows, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):  # type: ignore[misc]
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        in_row = row < rows
        weight, target = _weight_of(token_weights, targets, row, in_row, V)
        log_sum = tl.load(log_sums + row, in_row, other=float("inf"))
        place = logits + row.to(tl.int64)[:, None] * STRIDE + column[None, :]
        mask = in_row[:, None] & in_column[None, :]
        product = tl.load(place, mask, other=0.0).to(tl.float32)
        softmax = tl.exp2(product * _LOG2_E + shift[None, :] - log_sum[:, None])
        error = tl.where(column[None, :] == target[:, None], softmax - 1.0, softmax)
        gradient = error * (weight * gradient_scale)[:, None]
        tl.store(place, gradient.to(logits.dtype.element_ty), mask)
        sums += gradient
    if bias_partials is not None:
        partial = bias_partials + tl.program_id(0) * V + column
        tl.store(partial, tl.load(partial, in_column, other=0.0) + tl.sum(sums, 0), in_column)


def chunk_tokens(tokens: int, vocabulary: int, itemsize: int) -> int:
    """Return the tokens of a chunk: as few chunks as LOGITS_BYTES allow, of equal size up to a multiple of 128."""
    fitting = LOGITS_BYTES // (_padded(vocabulary) * itemsize) // _CHUNK_MULTIPLE * _CHUNK_MULTIPLE
    chunks = max(cdiv(tokens, max(fitting, _CHUNK_MULTIPLE)), 1)
    return cdiv(max(cdiv(tokens, chunks), 1), _CHUNK_MULTIPLE) * _CHUNK_MULTIPLE


@torch.no_grad()
def caption_loss_accumulate_(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    weight_gradient: Tensor | None,
    bias_gradient: Tensor | None,
    with_d_hidden: bool,
    products: torch.dtype,
    chunk: int,
    gradient_scale: float,
) -> tuple[Tensor, Tensor]:
    """Return loss ``[]`` and d_hidden (``[0]`` without); add to the gradients given, float32. Contiguous tensors.

    ``products`` is the dtype of logits and of both operands of every product; they are summed in float32.
    """
    tokens, vocabulary = hidden.shape[0], weight.shape[0]
    with_gradient = with_d_hidden or weight_gradient is not None or bias_gradient is not None
    weight = weight.to(products)
    losses = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    log_sums = torch.empty(chunk, dtype=torch.float32, device=hidden.device)
    logits = torch.empty((chunk, _padded(vocabulary)), dtype=products, device=hidden.device)
    d_hidden = torch.empty_like(hidden, dtype=products) if with_d_hidden else hidden.new_empty(0)
    bias_partials = None
    splits = _splits(chunk, vocabulary, hidden.device)
    if bias_gradient is not None:
        bias_partials = torch.zeros((splits, vocabulary), dtype=torch.float32, device=hidden.device)
    sizes = {"V": vocabulary, "STRIDE": logits.shape[1]}

    for first in range(0, tokens, chunk):
        rows = slice(first, min(first + chunk, tokens))
        count = rows.stop - first
        targets_here, weights_here = targets[rows], token_weights[rows]
        # A row that does not count may hold anything, NaN too, and 0 · NaN would reach the weight's gradient.
        operand = torch.where((weights_here != 0)[:, None], hidden[rows], 0.0).to(products)
        for words in _words(vocabulary):
            torch.mm(operand, weight[words].T, out=logits[:count, words])
        arguments = logits, bias, targets_here, weights_here
        launch(
            caption_loss_row_kernel,
            (cdiv(count, ROW_TILE["BLOCK_ROWS"]),),
            *(*arguments, losses[rows], log_sums, count),
            **sizes,
            **ROW_TILE,
        )
        if not with_gradient:
            continue
        launch(
            caption_loss_column_kernel,
            (splits, cdiv(vocabulary, COLUMN_TILE["BLOCK_V"])),
            *(*arguments, log_sums, bias_partials, count, gradient_scale),
            **sizes,
            **COLUMN_TILE,
        )
        if with_d_hidden:
            _multiply(logits[:count], weight, d_hidden[rows])
        if weight_gradient is not None:
            for words in _words(vocabulary):
                add_product_(weight_gradient[words], logits[:count, words].T, operand)
    if bias_gradient is not None and bias_partials is not None:
        bias_gradient += bias_partials.sum(0)
    return losses.sum(), d_hidden.to(hidden.dtype)


def _multiply(d_logits: Tensor, weight: Tensor, d_hidden: Tensor) -> None:
    """Write d_logits @ weight, the few remaining words first: what they give is small and so is its rounding error."""
    first, *others = reversed(_words(weight.shape[0]))
    torch.mm(d_logits[:, first], weight[first], out=d_hidden)
    for words in others:
        d_hidden.addmm_(d_logits[:, words], weight[words])


def _words(vocabulary: int) -> list[slice]:
    """Return what a product runs over: words up to the last multiple of 8, and those that remain."""
    aligned = vocabulary // _WORD_MULTIPLE * _WORD_MULTIPLE
    return [words for words in (slice(0, aligned), slice(aligned, vocabulary)) if words.stop > words.start]


def _padded(vocabulary: int) -> int:
    return cdiv(vocabulary, _ROW_MULTIPLE) * _ROW_MULTIPLE


def _splits(rows: int, vocabulary: int, device: torch.device) -> int:
    wanted = cdiv(_COLUMN_PROGRAMS_TOGETHER * processors(device), cdiv(vocabulary, COLUMN_TILE["BLOCK_V"]))
    return min(wanted, cdiv(rows, COLUMN_TILE["BLOCK_ROWS"]))


def _outputs(
    hidden: Tensor,
    _weight: Tensor,
    _bias: Tensor,
    _targets: Tensor,
    _token_weights: Tensor,
    _weight_gradient: Tensor | None,
    _bias_gradient: Tensor | None,
    with_d_hidden: bool,
    *_sizes: object,
) -> tuple[Tensor, Tensor]:
    loss = hidden.new_empty((), dtype=torch.float32)
    return loss, torch.empty_like(hidden) if with_d_hidden else hidden.new_empty(0)


caption_loss_accumulate_op = define(
    "caption_loss_accumulate_(Tensor hidden, Tensor weight, Tensor bias, Tensor targets, Tensor token_weights, "
    "Tensor(a!)? weight_gradient, Tensor(b!)? bias_gradient, bool with_d_hidden, ScalarType products, SymInt chunk, "
    "float gradient_scale) -> (Tensor, Tensor)",
    caption_loss_accumulate_,
    _outputs,
)
