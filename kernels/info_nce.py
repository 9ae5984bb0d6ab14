"""Contrastive loss over all pairs of a batch (InfoNCE, both directions, learnable temperature).

The kernels never hold the [N, N] logits: memory is O(N D), and a tile of similarities serves both directions, 2 N² D
operations forward and 6 N² D backward. Where several ranks share a batch, :mod:`.info_nce_ranks` has the steps.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend
from .checks import check_device, check_dtype, check_shape
from .info_nce_ops import info_nce_gradients_op, info_nce_pairs_op, info_nce_wrong_op
from .info_nce_rivals import full_logits, two_calls
from .precision import at_least_float32, autocast
from .spec import Case, Inputs, MakeInputs, Spec, Work

Precision = Literal["float32", "bfloat16"]
"""Of products of wider embeddings: those of float32, or of the embeddings rounded to bfloat16.

At a scale of 100 rounding can move a logit of unit embeddings by 0.4. The similarity of embeddings that are bfloat16 is
that of float32 either way. Where kernels multiply bfloat16, the logits' gradient is rounded to it as well.
"""


class InfoNCEFunction(torch.autograd.Function):
    """Joins the ops for a batch on one device."""

    @staticmethod
    def forward(ctx: Any, audio: Tensor, text: Tensor, logit_scale: Tensor, *settings: Any) -> Tensor:
        """Run forward and keep, beside the embeddings, five numbers a pair."""
        precision, halved = settings
        rows, columns = kernel_operands(audio, text, precision)
        pairs = info_nce_pairs_op(rows, columns)
        row_wrong, column_wrong = info_nce_wrong_op(rows, columns, logit_scale, 0)
        ctx.save_for_backward(rows, columns, pairs, row_wrong, column_wrong, logit_scale)
        ctx.halved, ctx.dtypes = halved, (audio.dtype, text.dtype, logit_scale.dtype)
        return info_nce_loss(pairs, row_wrong, column_wrong, logit_scale, halved=halved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> Any:  # type: ignore[override]
        """Compute all three gradients, each in its argument's dtype."""
        gradients = info_nce_gradients_op(*ctx.saved_tensors, d_loss, 0, ctx.halved, True)
        return *(gradient.to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)), None, None


def info_nce(
    audio: Tensor, text: Tensor, logit_scale: Tensor, *, halved: bool = False, precision: Precision = "float32"
) -> Tensor:
    """Return -(1/N) Σᵢ [log softmaxⱼ(s aᵢ·tⱼ)ᵢ + log softmaxⱼ(s tᵢ·aⱼ)ᵢ], s = exp(logit_scale) (paper, eq. 1).

    ``audio`` and ``text`` ``[N, D]`` unit embeddings, pair by pair; ``logit_scale`` 0-d. ``halved`` gives open_clip's
    mean of the two directions instead of their sum. Summed at least in float32, whatever the length of the embeddings;
    a ``logit_scale`` that is not finite gives a loss that is not. Gradients are those at the embeddings that
    ``precision`` leaves, in each argument's dtype. Raises ValueError where counts, widths or devices differ and, fused,
    on a dtype the kernels do not take.
    """
    check_arguments(audio, text, logit_scale, precision)
    return _dispatch(audio, text, logit_scale, halved=halved, precision=precision)


def info_nce_reference(
    audio: Tensor, text: Tensor, logit_scale: Tensor, *, halved: bool, precision: Precision = "float32"
) -> Tensor:
    """Compute :func:`info_nce` through the full ``[N, N]`` logits."""
    with autocast(audio.device, None):
        audio, text = (at_least_float32(rounded(embeddings, precision)) for embeddings in (audio, text))
        scale = logit_scale.to(audio.dtype).exp()
        logits = scale * (audio @ text.T)
        pairs = torch.arange(len(logits), device=logits.device)
        loss = F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)
    return (loss / 2 if halved else loss) + 0.0 * logit_scale.detach().to(loss.dtype)


def info_nce_loss(
    pairs: Tensor, row_wrong: Tensor, column_wrong: Tensor, logit_scale: Tensor, *, halved: bool
) -> Tensor:
    """Return the loss of all pairs, 0-d, from their similarity ``[N]`` and what is wrong with them ``[2, N]``."""
    zero = pairs.new_zeros(())
    odds = (log_odds(pairs, wrong, logit_scale) for wrong in (row_wrong, column_wrong))
    loss = sum(torch.logaddexp(side, zero).mean() for side in odds)
    # A temperature that is not finite shows, even where no pair feels it.
    return (loss / 2 if halved else loss) + 0.0 * (logit_scale + logit_scale.exp()).to(pairs.dtype)


def log_odds(pairs: Tensor, wrong: Tensor, logit_scale: Tensor) -> Tensor:
    """Return log(1 / p - 1) of pairs of similarity ``[n]`` against the wrong ones; -inf where there are none.

    ``wrong`` ``[2, n]``: the best similarity b among the wrong, Σ exp(s (similarity - b)) over them.
    """
    best, total = wrong
    return torch.where(total > 0, logit_scale.to(pairs.dtype).exp() * (best - pairs), 0.0) + total.log()


def rounded(embeddings: Tensor, precision: Precision) -> Tensor:
    """Return ``embeddings`` as ``precision`` leaves them, in their dtype; the gradient passes as it is."""
    if precision == "float32":
        return embeddings
    return embeddings + (embeddings.detach().bfloat16().to(embeddings.dtype) - embeddings.detach())


def kernel_operands(audio: Tensor, text: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Return contiguous embeddings of the one dtype that the kernels multiply: float32 or bfloat16."""
    for name, embeddings in (("audio", audio), ("text", text)):
        check_dtype("info_nce", name, embeddings)
    narrow = precision == "bfloat16" or audio.dtype == text.dtype == torch.bfloat16
    dtype = torch.bfloat16 if narrow else torch.float32
    return audio.to(dtype).contiguous(), text.to(dtype).contiguous()


def check_arguments(audio: Tensor, text: Tensor, logit_scale: Tensor, precision: Precision) -> None:
    """Refuse embeddings of unequal count or width, more than one temperature, devices that differ."""
    op = "info_nce"
    if audio.shape != text.shape or audio.dim() != 2:
        shapes = f"{tuple(audio.shape)} and {tuple(text.shape)}"
        raise ValueError(f"{op}: audio and text have shapes {shapes}, expected the same [N, D]")
    check_shape(op, "logit_scale", logit_scale, ())
    check_device(op, "audio", audio.device, text=text, logit_scale=logit_scale)
    if precision not in get_args(Precision):
        raise ValueError(f"{op}: precision is {precision!r}, expected one of {get_args(Precision)}")


def _info_nce_cuda(audio: Tensor, text: Tensor, logit_scale: Tensor, *, halved: bool, precision: Precision) -> Tensor:
    return InfoNCEFunction.apply(audio, text, logit_scale, precision, halved)


_dispatch = backend.register("info_nce", reference=info_nce_reference, fused={"cuda": _info_nce_cuda})


def _pairs(
    count: int,
    width: int,
    logit_scale: float,
    *,
    halved: bool = False,
    alike: float = 0.5,
    length: float = 1.0,
    embeddings_dtype: torch.dtype | None = None,
    precision: Precision = "float32",
) -> MakeInputs:
    """Embeddings of ``length``; those of a pair share a part ``alike`` of their direction."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        audio, other = (torch.randn((count, width), generator=generator) for _ in range(2))
        text = alike * audio + (1.0 - alike) * other
        tensors = {
            name: (length * F.normalize(value, dim=-1)).to(device, embeddings_dtype or dtype).requires_grad_()
            for name, value in (("audio", audio), ("text", text))
        }
        scale_dtype = torch.promote_types(dtype, torch.float32)  # a parameter, never narrower than float32
        scale = torch.tensor(logit_scale, dtype=scale_dtype, device=device).requires_grad_()
        return {**tensors, "logit_scale": scale, "halved": halved, "precision": precision}

    return make


def _work(inputs: Inputs, products: int, passes: int) -> Work:
    audio = inputs["audio"]
    return Work(bytes=2 * passes * audio.nbytes, flops=2 * products * audio.shape[0] * audio.numel())


SPEC = Spec(
    name="info_nce",
    op=info_nce,
    reference=info_nce_reference,
    cases=(
        Case("odd", _pairs(37, 24, 2.0)),
        Case("halved, sharp", _pairs(16, 32, 4.6, halved=True)),
        Case("one pair", _pairs(1, 8, 2.0)),
        Case("pairs alike", _pairs(9, 16, 2.6, alike=1.0)),
        Case("more than one tile, wide", _pairs(150, 160, 4.6)),
        Case("strangers", _pairs(20, 16, 4.6, alike=0.0)),
        Case("long", _pairs(20, 16, 4.6, length=7.0)),
        Case("stage 2", _pairs(4096, 768, 2.0), paper=True),
        Case("stage 2, float32", _pairs(4096, 768, 2.0, embeddings_dtype=torch.float32), paper=True),
        Case(
            "stage 2, rounded",
            _pairs(4096, 768, 2.0, embeddings_dtype=torch.float32, precision="bfloat16"),
            paper=True,
        ),
        Case("large", _pairs(32_768, 768, 4.6), paper=True),
    ),
    forward=lambda inputs: _work(inputs, 1, 1),
    backward=lambda inputs: _work(inputs, 3, 2),
    tensor_cores=True,
    rivals={"full_logits": full_logits, "two_calls": two_calls},
)
