"""Language-model head and cross-entropy of the captioning objective."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend


def caption_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor) -> Tensor:
    """Return Σ token_weights · -log softmax(hidden @ weight.T + bias)[targets], a scalar of at least float32.

    ``hidden`` ``[..., D]``, ``weight`` ``[V, D]``, ``bias`` ``[V]``, ``targets`` int64 ``[...]``, ``token_weights``
    ``[...]``: 0 leaves a token out (pads, last tokens); 1/(captions · tokens of the caption) gives the mean over
    captions, 1/tokens the mean over tokens.
    """
    return _dispatch(hidden, weight, bias, targets, token_weights)


def caption_loss_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor
) -> Tensor:
    """Compute :func:`caption_loss` through the logits of the tokens whose weight is not 0."""
    counted = token_weights != 0
    logits = F.linear(hidden[counted], weight, bias)
    with torch.autocast(hidden.device.type, enabled=False):
        if logits.element_size() < 4:
            logits = logits.float()
        nll = F.cross_entropy(logits, targets[counted], reduction="none")
        return (nll * token_weights[counted].to(nll.dtype)).sum()


_dispatch = backend.register("caption_loss", reference=caption_loss_reference)
