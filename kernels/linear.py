"""Linear map with bias and an optional activation: the GEMM of every projection and feed-forward layer.

On CUDA cuBLAS multiplies, through torch, or our own kernel: :mod:`.linear_choice` has the table. What surrounds the
products is fused: the activation and its gradient are one pass each or none, and the gradient of the bias comes with
that of the activation.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend
from .activation import Activation, activation_bwd_op, activation_reference, check_activation
from .checks import check_device, check_dtype, check_shape
from .linear_choice import LinearProvider, linear_provider_asked, linear_variants
from .linear_steps import activated_product, bias_gradient, input_gradient, product, weight_gradient
from .precision import autocast_dtype, gradient_dtype
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal


class LinearFunction(torch.autograd.Function):
    """The product in dtype ``products``, its gradients in the dtypes asked for; ``x`` is ``[rows, K]``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        activation: Activation | None,
        products: torch.dtype,
        asked: LinearProvider | None,
    ) -> Tensor:
        """Keep the operands as multiplied, and what the activation reads; ``asked`` multiplies in backward, too."""
        ctx.dtypes = x.dtype, gradient_dtype(weight), gradient_dtype(bias)
        ctx.activation, ctx.asked = activation, asked
        x, weight, bias = x.to(products), weight.to(products), bias.to(products)
        if activation:
            out, pre = activated_product(x, weight, bias, activation, True, asked)
        else:
            out, pre = product(x, weight, bias, asked), None
        ctx.save_for_backward(x, weight, pre)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Two products and a sum, each where somebody asks for it."""
        x, weight, pre = ctx.saved_tensors
        x_dtype, weight_dtype, bias_dtype = ctx.dtypes
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_pre, d_bias = gradients[0].contiguous(), None
        if ctx.activation:
            sums = bias_dtype if needs_bias else None
            d_pre, _, d_bias = activation_bwd_op(d_pre, pre, ctx.activation, False, sums)
        elif needs_bias:
            d_bias = bias_gradient(d_pre, bias_dtype)
        d_x = input_gradient(d_pre, weight, None, ctx.asked).to(x_dtype) if needs_x else None
        d_weight = weight_gradient(d_pre, x, weight_dtype) if needs_weight else None
        return d_x, d_weight, d_bias if needs_bias else None, None, None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation | None = None) -> Tensor:
    """Return activation(x @ weight.T + bias): ``x`` ``[..., K]``, ``weight`` ``[N, K]``, ``bias`` ``[N]``, any layout.

    ``silu`` is x · sigmoid(x); ``gelu`` the exact one, with erf. Under autocast operands and result have its dtype,
    else the operands have one dtype. Raises ValueError for arguments that do not fit, on CUDA also for a dtype the
    kernels do not take.
    """
    check_shape("linear", "weight", weight, (*weight.shape[:1], x.shape[-1]))
    check_shape("linear", "bias", bias, weight.shape[:1])
    check_device("linear", "x", x.device, weight=weight, bias=bias)
    if activation is not None:
        check_activation("linear", "activation", activation)
    return _dispatch(x, weight, bias, activation)


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation | None) -> Tensor:
    """Compute :func:`linear` in plain PyTorch."""
    y = F.linear(x, weight, bias)
    return y if activation is None else activation_reference(y, activation)


def _linear_cuda(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation | None) -> Tensor:
    products = products_dtype("linear", x, weight=weight, bias=bias)
    out = LinearFunction.apply(x.reshape(-1, x.shape[-1]), weight, bias, activation, products, linear_provider_asked())
    return out.view(*x.shape[:-1], weight.shape[0])


def products_dtype(op: str, x: Tensor, **parameters: Tensor) -> torch.dtype:
    """Return the dtype in which ``op`` multiplies: autocast's where it is on, else that of ``x``.

    Raises ValueError for a dtype the kernels do not take, and without autocast for one that is not that of ``x``.
    """
    for name, tensor in {"x": x, **parameters}.items():
        check_dtype(op, name, tensor)
    if (products := autocast_dtype(x.device)) is not None:
        return products
    for name, tensor in parameters.items():
        check_dtype(op, name, tensor, (x.dtype,))
    return x.dtype


_dispatch = backend.register("linear", reference=linear_reference, fused={"cuda": _linear_cuda})


def _tokens(tokens: int, in_features: int, out_features: int, activation: Activation | None) -> MakeInputs:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        shapes = {"x": (tokens, in_features), "weight": (out_features, in_features), "bias": (out_features,)}
        tensors = {name: draw_normal(shape, generator, device, dtype) for name, shape in shapes.items()}
        tensors["weight"].data.div_(in_features**0.5)
        return {**tensors, "activation": activation}

    return make


def _forward_work(inputs: Inputs) -> Work:
    x, weight = inputs["x"], inputs["weight"]
    out_bytes = x.numel() // x.shape[-1] * weight.shape[0] * x.element_size()
    return Work(bytes=x.nbytes + weight.nbytes + out_bytes, flops=2 * x.numel() * weight.shape[0])


def _backward_work(inputs: Inputs) -> Work:
    """The output's gradient, x and weight are read, three gradients are written; two products."""
    x, weight = inputs["x"], inputs["weight"]
    out_bytes = x.numel() // x.shape[-1] * weight.shape[0] * x.element_size()
    return Work(bytes=out_bytes + 2 * x.nbytes + 2 * weight.nbytes, flops=4 * x.numel() * weight.shape[0])


SPEC = Spec(
    name="linear",
    op=linear,
    reference=linear_reference,
    cases=(
        Case("silu", _tokens(37, 96, 288, "silu")),
        Case("gelu", _tokens(5, 48, 80, "gelu")),
        Case("odd", _tokens(3, 17, 13, None)),
        Case("one token", _tokens(1, 64, 64, None)),
        Case("no token", _tokens(0, 32, 16, "silu")),
        Case("mlp_in", _tokens(131_072, 768, 3072, "silu"), paper=True),
        Case("qkv", _tokens(131_072, 768, 2304, None), paper=True),
        Case("out", _tokens(131_072, 768, 768, None), paper=True),
        Case("captions, mlp_in", _tokens(4096 * 18, 768, 3072, "gelu"), paper=True),
    ),
    forward=_forward_work,
    backward=_backward_work,
    variants=linear_variants(linear),
)
