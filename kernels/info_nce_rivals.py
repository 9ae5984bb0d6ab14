"""What others do instead of :mod:`.info_nce`, in plain PyTorch, for benches.

``full_logits`` is open_clip's loss on one device: the ``[N, N]`` logits in the embeddings' dtype, and two
cross-entropies over them. ``two_calls`` is the scheme of Inf-CL (Cheng et al. 2024): some rows of logits at a time in
float32, a call for each direction, and backward computes them again for either side. That is 20 N² D operations
instead of 8.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1024
"""Rows of logits that ``two_calls`` holds at a time."""


def full_logits(audio: Tensor, text: Tensor, logit_scale: Tensor, *, halved: bool, precision: str) -> Tensor:
    """Compute both directions from one matrix of logits."""
    if precision == "bfloat16":
        audio, text = audio.bfloat16(), text.bfloat16()
    logits = (logit_scale.exp().to(audio.dtype) * audio @ text.T).float()
    pairs = torch.arange(len(logits), device=logits.device)
    loss = F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)
    return loss / 2 if halved else loss


def two_calls(audio: Tensor, text: Tensor, logit_scale: Tensor, *, halved: bool, precision: str) -> Tensor:
    """Compute each direction for itself."""
    if precision == "bfloat16":
        audio, text = audio.bfloat16(), text.bfloat16()
    audio, text, scale = audio.float(), text.float(), logit_scale.exp()
    loss = OneDirection.apply(scale * audio, text) + OneDirection.apply(scale * text, audio)
    return loss / 2 if halved else loss


class OneDirection(torch.autograd.Function):
    """Mean cross-entropy of queries ``[N, D]`` against all keys ``[N, D]``, CHUNK rows of logits at a time."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor) -> Tensor:
        """Keep a log-sum-exp a query."""
        totals = torch.cat([(chunk @ keys.T).logsumexp(1) for chunk in queries.split(CHUNK)])
        ctx.save_for_backward(queries, keys, totals)
        return (totals - (queries * keys).sum(1)).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> Any:  # type: ignore[override]
        """Compute the weights of all keys chunk by chunk for the queries, then those of all queries for the keys."""
        queries, keys, totals = ctx.saved_tensors
        d_queries = torch.cat(
            [
                (chunk @ keys.T - total[:, None]).exp() @ keys
                for chunk, total in zip(queries.split(CHUNK), totals.split(CHUNK), strict=True)
            ]
        )
        d_keys = torch.cat([(chunk @ queries.T - totals).exp() @ queries for chunk in keys.split(CHUNK)])
        factor = d_loss / len(queries)
        return factor * (d_queries - keys), factor * (d_keys - queries)
