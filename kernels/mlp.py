"""The feed-forward layer: two linear maps with an activation between, which backward makes again instead of keeping.

The steps are those of the blocks by hand (:mod:`.linear_steps`); as one op they can be tested and timed together. Where
:mod:`.linear_choice` gives a step to our kernels, nothing between the products goes through memory but what backward
reads: W₁ x + b₁ in the forward pass, its gradient and the activation in the backward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend
from .activation import Activation, check_activation
from .checks import check_device, check_shape
from .linear import linear_reference, products_dtype
from .linear_choice import LinearProvider, linear_provider_asked, linear_variants
from .linear_steps import (
    activated_input_gradient,
    activated_product,
    added_product,
    bias_gradient,
    input_gradient,
    product,
    weight_gradient,
)
from .precision import gradient_dtype
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal


class MlpFunction(torch.autograd.Function):
    """Both products in dtype ``products``, gradients in the operands' dtypes; ``x`` is ``[rows, D]``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_in: Tensor,
        bias_in: Tensor,
        weight_out: Tensor,
        bias_out: Tensor,
        activation: Activation,
        residual: bool,
        products: torch.dtype,
        asked: LinearProvider | None,
    ) -> Tensor:
        """Keep the operands as multiplied, and what the activation reads."""
        operands = x, weight_in, bias_in, weight_out, bias_out
        ctx.dtypes = [gradient_dtype(operand) for operand in operands]
        ctx.activation, ctx.residual, ctx.asked = activation, residual, asked
        x, weight_in, bias_in, weight_out, bias_out = (operand.to(products) for operand in operands)
        activated, inside = activated_product(x, weight_in, bias_in, activation, True, asked)
        ctx.save_for_backward(x, weight_in, weight_out, inside)
        if not residual:
            return product(activated, weight_out, bias_out, asked)
        out = added_product(activated, weight_out, bias_out, x, asked)
        return x + product(activated, weight_out, bias_out, asked) if out is None else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Four products; the gradient of ``weight_out`` reads the activation made again."""
        x, weight_in, weight_out, inside = ctx.saved_tensors
        x_dtype, weight_in_dtype, bias_in_dtype, weight_out_dtype, bias_out_dtype = ctx.dtypes
        d_y = gradients[0].contiguous()
        d_inside, activated, d_bias_in = activated_input_gradient(d_y, weight_out, inside, ctx.activation, ctx.asked)
        d_x = input_gradient(d_inside, weight_in, d_y if ctx.residual else None, ctx.asked)
        return (
            d_x.to(x_dtype),
            weight_gradient(d_inside, x, weight_in_dtype),
            d_bias_in.to(bias_in_dtype),
            weight_gradient(d_y, activated, weight_out_dtype),
            bias_gradient(d_y, bias_out_dtype),
            *(None,) * 4,
        )


def mlp(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    activation: Activation,
    residual: bool = False,
) -> Tensor:
    """Return activation(x W₁ᵀ + b₁) W₂ᵀ + b₂, with ``residual`` x more: ``x`` ``[..., D]``, any layout.

    ``weight_in`` is ``[M, D]``, ``weight_out`` ``[D, M]``. Dtypes and errors are those of :func:`~.linear.linear`.
    """
    width, inside = x.shape[-1], weight_in.shape[0]
    check_shape("mlp", "weight_in", weight_in, (inside, width))
    check_shape("mlp", "bias_in", bias_in, (inside,))
    check_shape("mlp", "weight_out", weight_out, (width, inside))
    check_shape("mlp", "bias_out", bias_out, (width,))
    parameters = {"weight_in": weight_in, "bias_in": bias_in, "weight_out": weight_out, "bias_out": bias_out}
    check_device("mlp", "x", x.device, **parameters)
    check_activation("mlp", "activation", activation)
    return _dispatch(x, weight_in, bias_in, weight_out, bias_out, activation, residual)


def mlp_reference(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    activation: Activation,
    residual: bool = False,
) -> Tensor:
    """Compute :func:`mlp` in plain PyTorch."""
    y = linear_reference(linear_reference(x, weight_in, bias_in, activation), weight_out, bias_out, None)
    return x + y if residual else y


def _mlp_cuda(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    activation: Activation,
    residual: bool,
) -> Tensor:
    parameters = {"weight_in": weight_in, "bias_in": bias_in, "weight_out": weight_out, "bias_out": bias_out}
    products = products_dtype("mlp", x, **parameters)
    rows = x.reshape(-1, x.shape[-1])
    out = MlpFunction.apply(rows, *parameters.values(), activation, residual, products, linear_provider_asked())
    return out.view(x.shape)


_dispatch = backend.register("mlp", reference=mlp_reference, fused={"cuda": _mlp_cuda})


def _tokens(tokens: int, width: int, inside: int, activation: Activation, residual: bool) -> MakeInputs:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        shapes = {
            "x": (tokens, width),
            "weight_in": (inside, width),
            "bias_in": (inside,),
            "weight_out": (width, inside),
            "bias_out": (width,),
        }
        tensors = {name: draw_normal(shape, generator, device, dtype) for name, shape in shapes.items()}
        for name in ("weight_in", "weight_out"):
            tensors[name].data.div_(shapes[name][1] ** 0.5)
        return {**tensors, "activation": activation, "residual": residual}

    return make


def _work(inputs: Inputs, products: int, passes: int) -> Work:
    """``products`` of the input's and the output's size, and so many ``passes`` over x and over the weights."""
    x, weight = inputs["x"], inputs["weight_in"]
    flops = 2 * products * x.numel() * weight.shape[0]
    return Work(bytes=passes * x.nbytes + 2 * (passes - 1) * weight.nbytes, flops=flops)


SPEC = Spec(
    name="mlp",
    op=mlp,
    reference=mlp_reference,
    cases=(
        Case("silu, residual", _tokens(37, 48, 160, "silu", True)),
        Case("gelu", _tokens(70, 24, 96, "gelu", False)),
        Case("odd", _tokens(3, 13, 17, "gelu", True)),
        Case("no token", _tokens(0, 16, 32, "silu", True)),
        Case("stage 1, encoder", _tokens(65_536, 768, 3072, "silu", True), paper=True),
        Case("captions", _tokens(4096 * 18, 768, 3072, "gelu", False), paper=True),
    ),
    forward=lambda inputs: _work(inputs, 2, 2),
    backward=lambda inputs: _work(inputs, 4, 3),
    variants=linear_variants(mlp),
)
