"""InfoNCE of a batch that several ranks share, without autograd: the steps, and the loss with its gradients.

A rank has the embeddings of its own pairs. It gathers the others' and compares its audio with all text; the text's side
of the loss is put together from every rank's share of it, two numbers a text. With that each rank has the exact
gradient of its own embeddings, and nothing goes through the network in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from . import backend
from .info_nce import Precision, check_arguments, info_nce_loss, kernel_operands, log_odds, rounded
from .info_nce_ops import info_nce_gradients_op, info_nce_pairs_op, info_nce_wrong_op
from .precision import at_least_float32, autocast
from .spans import step_of

Gather = Callable[[Tensor], Tensor]
"""Concatenates every rank's tensor ``[n, ...]``, of the same shape everywhere, in rank order."""


@dataclass(frozen=True)
class LossAndGradients:
    """The loss of the whole batch, and gradients in at least float32.

    ``d_audio`` and ``d_text`` are whole for this rank's embeddings; ``d_logit_scale`` is its share: their sum over
    ranks is the gradient.
    """

    loss: Tensor
    d_audio: Tensor
    d_text: Tensor
    d_logit_scale: Tensor


@step_of("info_nce", arguments=3)
def info_nce_across_ranks(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *,
    gather: Gather = lambda rows: rows,
    rank: int = 0,
    halved: bool = False,
    precision: Precision = "float32",
) -> LossAndGradients:
    """Return :func:`~.info_nce.info_nce` of all ranks' pairs, the same on every rank, and its gradients here.

    ``audio`` and ``text`` ``[n, D]`` are this rank's pairs, as many on every rank. One rank computes a tile of
    similarities for both directions, 8 N² D operations in all. Of several each does 10 n N D: that of its audio with
    all text in forward and backward, and backward that of its text with all audio, where it would otherwise send
    gradients. Raises ValueError as :func:`~.info_nce.info_nce` does.
    """
    check_arguments(audio, text, logit_scale, precision)
    steps = _steps(audio.device)
    with torch.no_grad(), autocast(audio.device, None):
        audio, text = steps.operands(audio, text, precision)
        all_audio, all_text = gather(audio), gather(text)
        pairs, first = steps.pairs(all_audio, all_text), rank * len(audio)
        audio_wrong, text_share = steps.wrong(audio, all_text, logit_scale, first)
        all_audio_wrong = gather(audio_wrong.T).T.contiguous()
        all_text_wrong = merge_wrong(gather(text_share[None]), logit_scale)
        loss = info_nce_loss(pairs, all_audio_wrong, all_text_wrong, logit_scale, halved=halved)
        one, alone = torch.ones_like(loss), len(all_audio) == len(audio)
        d_audio, d_text, d_logit_scale = steps.gradients(
            audio, all_text, pairs, audio_wrong, all_text_wrong, logit_scale, one, first, halved, alone
        )
        if not alone:
            text_wrong = all_text_wrong[:, first : first + len(text)].contiguous()
            d_text, _, _ = steps.gradients(
                text, all_audio, pairs, text_wrong, all_audio_wrong, logit_scale, one, first, halved, False
            )
    return LossAndGradients(loss, d_audio, d_text, d_logit_scale)


def merge_wrong(shares: Tensor, logit_scale: Tensor) -> Tensor:
    """Add ranks' shares ``[ranks, 2, N]`` of what is wrong with columns: ``[2, N]``, relative to the best of all."""
    best = shares[:, 0].amax(0)
    scale = logit_scale.to(shares.dtype).exp()
    # A share without wrong partners has best -inf, and so have all where there is one pair.
    totals = torch.where(shares[:, 1] > 0, shares[:, 1] * (scale * (shares[:, 0] - best)).exp(), shares[:, 1])
    return torch.stack((best, totals.sum(0)))


@dataclass(frozen=True)
class Steps:
    """The steps of one implementation, on rows ``[n, D]``, row i of which belongs to column ``first_row`` + i.

    ``operands(audio, text, precision)``: what the others take. ``pairs(rows, columns)`` ``[N, D]`` each: the similarity
    of every pair ``[N]``. ``wrong(rows, columns, logit_scale, first_row)``: of every row ``[2, n]`` its best wrong
    partner's similarity b and Σ exp(s (similarity - b)) over all wrong ones; of every column ``[2, N]`` the same among
    these rows. ``gradients(rows, columns, pairs, row_wrong, column_wrong, logit_scale, d_loss, first_row, halved,
    with_columns)``, ``column_wrong`` among all rows: d(rows), d(columns) from these rows, or ``[0]``, and
    d(logit_scale) from these rows.
    """

    operands: Callable[[Tensor, Tensor, Precision], tuple[Tensor, Tensor]]
    pairs: Callable[[Tensor, Tensor], Tensor]
    wrong: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
    gradients: Callable[..., tuple[Tensor, Tensor, Tensor]]


def _steps(device: torch.device) -> Steps:
    choice = backend.choose("info_nce", device)
    if choice.path == "refused":
        raise InputError(f"{choice.op}: {choice.reason}")
    return FUSED if choice.path == "fused" else REFERENCE


def _operands_reference(audio: Tensor, text: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    return at_least_float32(rounded(audio, precision)), at_least_float32(rounded(text, precision))


def _pairs_reference(rows: Tensor, columns: Tensor) -> Tensor:
    return (rows * columns).sum(1)


def _wrong_reference(rows: Tensor, columns: Tensor, logit_scale: Tensor, first_row: int) -> tuple[Tensor, Tensor]:
    scale = logit_scale.to(rows.dtype).exp()
    similarity = (rows @ columns.T).masked_fill(_own(rows, columns, first_row), -torch.inf)

    def best_and_total(dim: int) -> Tensor:
        best = similarity.amax(dim)
        finite = best.masked_fill(best == -torch.inf, 0.0).unsqueeze(dim)
        total = torch.where(similarity == -torch.inf, 0.0, (scale * (similarity - finite)).exp()).sum(dim)
        return torch.stack((best, total))

    return best_and_total(1), best_and_total(0)


def _gradients_reference(
    rows: Tensor,
    columns: Tensor,
    pairs: Tensor,
    row_wrong: Tensor,
    column_wrong: Tensor,
    logit_scale: Tensor,
    d_loss: Tensor,
    first_row: int,
    halved: bool,
    with_columns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scale = logit_scale.to(rows.dtype).exp()
    own = _own(rows, columns, first_row)
    similarity = rows @ columns.T
    d_logits = torch.zeros_like(similarity)
    d_scale = pairs.new_zeros(())
    row_pairs = pairs[first_row : first_row + len(rows)]
    for wrong, pair, dim in ((row_wrong, row_pairs, 1), (column_wrong, pairs, 0)):
        odds = log_odds(pair, wrong, logit_scale)
        best, total, own_similarity, any_wrong = (x.unsqueeze(dim) for x in (*wrong, pair, odds.sigmoid()))
        each = torch.where(own, 0.0, any_wrong * (scale * (similarity - best)).exp() / total)
        d_logits += torch.where(own, -any_wrong, each)
        d_scale += (each * scale * (similarity - own_similarity)).sum()
    weight = d_loss * (0.5 if halved else 1.0) / len(columns)
    d_columns = weight * scale * (d_logits.T @ rows) if with_columns else pairs.new_empty(0)
    return weight * scale * (d_logits @ columns), d_columns, weight * d_scale


def _own(rows: Tensor, columns: Tensor, first_row: int) -> Tensor:
    """Which entries ``[n, N]`` are pairs."""
    row, column = (torch.arange(len(side), device=rows.device) for side in (rows, columns))
    return (first_row + row)[:, None] == column


REFERENCE = Steps(_operands_reference, _pairs_reference, _wrong_reference, _gradients_reference)
"""In plain PyTorch, through all similarities of these rows and columns."""
FUSED = Steps(kernel_operands, info_nce_pairs_op, info_nce_wrong_op, info_nce_gradients_op)
"""The kernels."""
