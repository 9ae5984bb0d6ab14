"""Language-model head and cross-entropy of the captioning objective."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend
from .precision import at_least_float32, autocast
from .spec import Case, Inputs, MakeInputs, Spec, Work


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
    with autocast(hidden.device, None):
        nll = F.cross_entropy(at_least_float32(logits), targets[counted], reduction="none")
        return (nll * token_weights[counted].to(nll.dtype)).sum()


_dispatch = backend.register("caption_loss", reference=caption_loss_reference)


def _tokens(tokens: int, width: int, vocabulary: int, *, counted: float = 0.9) -> MakeInputs:
    """Weights are those of a mean over tokens; a share of them is left out."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        hidden = torch.randn((tokens, width), generator=generator)
        weight = torch.randn((vocabulary, width), generator=generator) * width**-0.5
        bias = torch.randn(vocabulary, generator=generator) * 0.1
        floats = {"hidden": hidden, "weight": weight, "bias": bias}
        takes_part = torch.rand(tokens, generator=generator) < counted
        return {
            **{name: tensor.to(device, dtype).requires_grad_() for name, tensor in floats.items()},
            "targets": torch.randint(vocabulary, (tokens,), generator=generator).to(device),
            "token_weights": (takes_part.float() / max(int(takes_part.sum()), 1)).to(device),
        }

    return make


def _forward_work(inputs: Inputs) -> Work:
    hidden, weight = inputs["hidden"], inputs["weight"]
    return Work(bytes=hidden.nbytes + weight.nbytes, flops=2 * hidden.numel() * weight.shape[0])


def _backward_work(inputs: Inputs) -> Work:
    """Both operands are read, both gradients are written; two products, the logits' own recomputation not counted."""
    hidden, weight = inputs["hidden"], inputs["weight"]
    return Work(bytes=2 * (hidden.nbytes + weight.nbytes), flops=4 * hidden.numel() * weight.shape[0])


SPEC = Spec(
    name="caption_loss",
    op=caption_loss,
    reference=caption_loss_reference,
    cases=(
        Case("odd", _tokens(37, 24, 301)),
        Case("one token", _tokens(1, 16, 40, counted=1.0)),
        Case("nothing counted", _tokens(5, 16, 40, counted=0.0)),
        Case("stage 2", _tokens(73_728, 768, 50_265), paper=True),
    ),
    forward=_forward_work,
    backward=_backward_work,
)
