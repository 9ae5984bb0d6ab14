"""Language-model head and cross-entropy of the captioning objective, and all their gradients in one pass.

The kernels' forward pass makes the gradients beside the loss, a chunk of tokens at a time: what softmax needs is there,
and logits need neither be kept nor made again. All that is left to backward is to scale the gradients, and where the
upstream one is 1, which the device finds out, not even that.

On a CPU plain PyTorch runs: the same chunks in plain operations were no faster there.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import InputError
from . import backend
from .caption_loss_rivals import apple_cce, liger, torch_chunked
from .caption_loss_triton import caption_loss_accumulate_op, chunk_tokens
from .checks import check_device, check_dtype, check_shape
from .gradient_scale import scale_gradient_op
from .precision import at_least_float32, autocast, autocast_dtype
from .spans import step_of
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal

_PRODUCTS = (torch.float32, torch.bfloat16)
"""A token's weight is part of the gradient of its logits: in float16 it would vanish."""


class CaptionLossFunction(torch.autograd.Function):
    """The loss of rows ``[T, D]``. Gradients that forward made are handed out once; a second backward makes them again.

    ``asked`` says whose gradient somebody may want, of hidden, weight and bias; ``products`` is the products' dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        asked: Sequence[bool],
        products: torch.dtype,
    ) -> Tensor:
        """Run the op and keep the gradients for an upstream gradient of 1."""
        ctx.constants = asked, products
        ctx.save_for_backward(hidden, weight, bias, targets, token_weights)
        loss, ctx.gradients = _loss_and_fresh_gradients(hidden, weight, bias, targets, token_weights, asked, products)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Scale the gradients in place by the upstream one, which is read on the device."""
        operands, gradients = ctx.saved_tensors, ctx.gradients
        if torch.compiler.is_compiling():  # the products are the compiler's to fuse
            gradients = [None if gradient is None else gradient * d_loss for gradient in gradients]
        else:
            if gradients is None:
                _, gradients = _loss_and_fresh_gradients(*operands, *ctx.constants)
            ctx.gradients = None
            for gradient in gradients:
                if gradient is not None:
                    scale_gradient_op(gradient, d_loss)
        d_hidden, d_weight, d_bias = (
            None if gradient is None else gradient.to(operand.dtype)
            for gradient, operand in zip(gradients, operands[:3], strict=True)
        )
        return d_hidden, d_weight, d_bias, *[None] * 4


def caption_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor) -> Tensor:
    """Return Σ token_weights · -log softmax(hidden @ weight.T + bias)[targets], a scalar of at least float32.

    ``hidden`` ``[..., D]``, ``weight`` ``[V, D]``, ``bias`` ``[V]``, ``targets`` int64 ``[...]``, ``token_weights``
    ``[...]``: 0 leaves a token out, whatever its hidden state and target hold (pads, last tokens; a caption may have no
    other); 1/(captions · tokens of the caption) gives the mean over captions, 1/tokens the mean over tokens. Under
    autocast the products' operands have its dtype.

    Raises ValueError on arguments that do not fit, on token weights that ask for a gradient, fused on a dtype the
    kernels do not take, and on the CPU for a target outside of the vocabulary at a token that counts. On a device,
    which is not waited for, and where the call is compiled, such a target makes loss and gradients NaN.
    """
    _check("caption_loss", hidden, weight, bias, targets, token_weights)
    return _dispatch(hidden, weight, bias, targets, token_weights)


@step_of("caption_loss", arguments=5)
def caption_loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    *,
    weight_gradient: Tensor | None = None,
    bias_gradient: Tensor | None = None,
    gradient_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return :func:`caption_loss` and ``gradient_scale`` times its gradient of ``hidden``, outside of autograd.

    ``gradient_scale`` times the gradients of weight and bias is added to ``weight_gradient`` ``[V, D]`` and
    ``bias_gradient`` ``[V]``, float32 or, with the reference, wider, where they are given. The products' operands have
    ``hidden``'s dtype; weight and bias may be wider. Raises what :func:`caption_loss` does.
    """
    op = "caption_loss_and_gradients"
    _check(op, hidden, weight, bias, targets, token_weights)
    choice = backend.choose("caption_loss", hidden.device)
    if choice.path == "refused":
        raise InputError(f"{op}: {choice.reason}")
    is_fused = choice.path == "fused"
    for name, buffer, operand in (("weight_gradient", weight_gradient, weight), ("bias_gradient", bias_gradient, bias)):
        if buffer is not None:
            check_shape(op, name, buffer, operand.shape)
            check_device(op, "hidden", hidden.device, **{name: buffer})
            check_dtype(op, name, buffer, (torch.float32,) if is_fused else (torch.float32, torch.float64))
    arguments = hidden, weight, bias, targets, token_weights, weight_gradient, bias_gradient, gradient_scale
    return (_and_gradients_cuda if is_fused else caption_loss_and_gradients_reference)(*arguments)


def caption_loss_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor
) -> Tensor:
    """Compute :func:`caption_loss` through the logits of the tokens whose weight is not 0."""
    counted = token_weights != 0
    logits, targets = F.linear(hidden[counted], weight, bias), targets[counted]
    with autocast(hidden.device, None):
        is_word = (targets >= 0) & (targets < weight.shape[0])
        nll = F.cross_entropy(at_least_float32(logits), targets.where(is_word, 0), reduction="none")
        return (nll * token_weights[counted].to(nll.dtype).where(is_word, torch.nan)).sum()


def caption_loss_and_gradients_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    weight_gradient: Tensor | None,
    bias_gradient: Tensor | None,
    gradient_scale: float,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`caption_loss_and_gradients` by PyTorch's autograd."""
    leaves = [operand.detach().requires_grad_() for operand in (hidden, weight, bias)]
    with torch.enable_grad():
        products = hidden.dtype
        loss = caption_loss_reference(leaves[0], leaves[1].to(products), leaves[2].to(products), targets, token_weights)
    upstream = torch.full_like(loss, gradient_scale)
    d_hidden, d_weight, d_bias = torch.autograd.grad(loss, leaves, upstream)
    if weight_gradient is not None:
        weight_gradient += d_weight
    if bias_gradient is not None:
        bias_gradient += d_bias
    return loss.detach(), d_hidden


def _caption_loss_cuda(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor) -> Tensor:
    products = autocast_dtype(hidden.device)
    if products is None:
        products = hidden.dtype
        check_dtype("caption_loss", "weight", weight, (products,))
    operands = _rows("caption_loss", hidden, weight, bias, targets, token_weights, products)
    asked = tuple(torch.is_grad_enabled() and operand.requires_grad for operand in (hidden, weight, bias))
    return CaptionLossFunction.apply(*operands, asked, products)


def _and_gradients_cuda(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    weight_gradient: Tensor | None,
    bias_gradient: Tensor | None,
    gradient_scale: float,
) -> tuple[Tensor, Tensor]:
    op, products = "caption_loss_and_gradients", hidden.dtype
    with torch.no_grad():
        operands = _rows(op, hidden, weight, bias, targets, token_weights, products)
        chunk = chunk_tokens(len(operands[0]), len(weight), products.itemsize)
        loss, d_hidden = caption_loss_accumulate_op(
            *operands, weight_gradient, bias_gradient, True, products, chunk, gradient_scale
        )
    return loss, d_hidden.view(hidden.shape)


def _rows(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    products: torch.dtype,
) -> tuple[Tensor, ...]:
    """Return contiguous operands, tokens in rows; refuse dtypes the kernels do not take."""
    if products not in _PRODUCTS:
        raise ValueError(f"{op}: the products' dtype is {products}, expected one of {_PRODUCTS}")
    for name, tensor in {"hidden": hidden, "weight": weight, "bias": bias, "token_weights": token_weights}.items():
        check_dtype(op, name, tensor)
    return (
        hidden.reshape(-1, hidden.shape[-1]).contiguous(),
        weight.contiguous(),
        bias.contiguous(),
        targets.reshape(-1).contiguous(),
        token_weights.reshape(-1).contiguous(),
    )


def _loss_and_fresh_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    asked: Sequence[bool],
    products: torch.dtype,
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss and the gradients asked for of hidden, weight and bias, of the latter two in float32."""
    d_weight, d_bias = (
        torch.zeros_like(operand, dtype=torch.float32) if wanted else None
        for operand, wanted in zip((weight, bias), asked[1:], strict=True)
    )
    chunk = chunk_tokens(hidden.shape[0], weight.shape[0], products.itemsize)
    loss, d_hidden = caption_loss_accumulate_op(
        hidden, weight, bias, targets, token_weights, d_weight, d_bias, asked[0], products, chunk, 1.0
    )
    return loss, [d_hidden if asked[0] else None, d_weight, d_bias]


def _check(op: str, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, token_weights: Tensor) -> None:
    check_shape(op, "weight", weight, (*weight.shape[:1], hidden.shape[-1]))
    check_shape(op, "bias", bias, weight.shape[:1])
    check_shape(op, "targets", targets, hidden.shape[:-1])
    check_shape(op, "token_weights", token_weights, hidden.shape[:-1])
    check_dtype(op, "targets", targets, (torch.int64,))
    check_device(op, "hidden", hidden.device, weight=weight, bias=bias, targets=targets, token_weights=token_weights)
    if token_weights.requires_grad:
        raise ValueError(f"{op}: token_weights asks for a gradient, expected one that is detached")
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = targets[(token_weights != 0) & ((targets < 0) | (targets >= weight.shape[0]))]
        if len(outside):
            raise ValueError(
                f"{op}: targets holds {int(outside[0])} at a token that counts, expected 0 to {weight.shape[0] - 1}"
            )


_dispatch = backend.register("caption_loss", reference=caption_loss_reference, fused={"cuda": _caption_loss_cuda})


def _tokens(tokens: int, width: int, vocabulary: int, *, counted: float = 0.9) -> MakeInputs:
    """Weights are those of a mean over tokens; a share of them is left out."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        hidden, weight, bias = (
            draw_normal(shape, generator, device, dtype)
            for shape in ((tokens, width), (vocabulary, width), (vocabulary,))
        )
        weight.data.mul_(width**-0.5)
        bias.data.mul_(0.1)
        takes_part = torch.rand(tokens, generator=generator) < counted
        return {
            "hidden": hidden,
            "weight": weight,
            "bias": bias,
            "targets": torch.randint(vocabulary, (tokens,), generator=generator).to(device),
            "token_weights": (takes_part.float() / max(int(takes_part.sum()), 1)).to(device),
        }

    return make


def _forward_work(inputs: Inputs) -> Work:
    """Read both operands, write both gradients: three products, also where the gradients are made in backward."""
    hidden, weight = inputs["hidden"], inputs["weight"]
    return Work(bytes=2 * (hidden.nbytes + weight.nbytes), flops=6 * hidden.numel() * weight.shape[0])


SPEC = Spec(
    name="caption_loss",
    op=caption_loss,
    reference=caption_loss_reference,
    cases=(
        Case("odd", _tokens(37, 24, 301)),
        Case("one token", _tokens(1, 16, 40, counted=1.0)),
        Case("more words than a block", _tokens(150, 16, 1041)),
        Case("fewer words than 8", _tokens(9, 16, 5)),
        Case("nothing counted", _tokens(5, 16, 40, counted=0.0)),
        Case("stage 2", _tokens(73_728, 768, 50_265), paper=True),
    ),
    forward=_forward_work,
    backward=lambda inputs: Work(bytes=0),
    rivals={"torch chunked": torch_chunked, "liger": liger, "apple cce": apple_cce},
)
