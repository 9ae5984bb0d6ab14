"""The steps of a transformer block by hand: a forward step, and the backward step that undoes it; no autograd graph.

Rows ``[..., D]`` of any layout. A forward step returns what the next one reads; a backward step takes the gradient of
that, adds the gradients of the parameters to buffers the caller gives (float32, or wider), and returns the gradient of
what the forward step read. Nothing is kept between them: what backward needs, the caller kept or makes again.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend
from .activation import Activation, activation, activation_backward
from .dropout import DropoutKey, OpArguments, dropout_reference, op_arguments
from .layer_norm_triton import layer_norm_bwd_op, layer_norm_fwd_op
from .layout import Layout
from .linear_steps import (
    activated_input_gradient,
    activated_product,
    added_product,
    bias_gradient,
    input_gradient,
    product,
)
from .products import add_product_
from .spans import step_of


@dataclass(frozen=True)
class Dropout:
    """Where a dropout lies: its ``key`` and the tokens' ``layout``."""

    key: DropoutKey
    layout: Layout


@dataclass(frozen=True)
class Normed:
    """A normalised sum: ``normed``, the sum ``h`` itself, and its rows' ``mean`` and ``rstd`` (float32 or wider)."""

    normed: Tensor
    h: Tensor
    mean: Tensor
    rstd: Tensor


@step_of("add_layer_norm")
def norm_forward(
    x: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    dropout: Dropout | None = None,
) -> Normed:
    """Normalise h = residual + dropout(x), or the residual alone where ``x`` is None; all ``[..., D]``, one dtype.

    normed = (h - mean) · rstd · weight + bias, rstd = 1 / sqrt(var + eps). The parameters may be wider.
    """
    if _is_fused("add_layer_norm", residual):
        rows = residual.reshape(-1, residual.shape[-1]).contiguous()
        arguments = _op_arguments(dropout, rows)
        update = None if x is None else x.reshape(rows.shape).contiguous()
        first, second = (rows, None) if update is None else (update, rows)
        normed, h, mean, rstd = layer_norm_fwd_op(first, second, weight, bias, eps, residual.dtype, *arguments)
        h = residual if update is None else h.view(residual.shape)
        return Normed(normed.view(residual.shape), h, mean, rstd)
    if x is not None and dropout is not None:
        x = dropout_reference(x, dropout.key, dropout.layout)
    h = residual if x is None else residual + x
    normed, mean, rstd = torch.native_layer_norm(h.to(weight.dtype), h.shape[-1:], weight, bias, eps)
    return Normed(normed.to(h.dtype), h, mean, rstd)


@step_of("add_layer_norm")
def norm_backward(
    d_normed: Tensor,
    d_h: Tensor | None,
    forward: Normed,
    weight: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
    *,
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the residual; ``d_h`` is what reaches the sum h from elsewhere.

    With u = (h - mean) · rstd and g = d_normed · weight: d_residual = rstd · (g - mean(g) - u · mean(g · u)) + d_h,
    d_x its dropout; d_weight += Σ d_normed · u, d_bias += Σ d_normed. Where nothing lies between them the two are one
    tensor.
    """
    h = forward.h
    if _is_fused("add_layer_norm", h):
        rows = h.reshape(-1, h.shape[-1])
        arguments = _op_arguments(dropout, rows)
        d_sum = None if d_h is None else d_h.reshape(rows.shape).contiguous()
        d_rows = d_normed.reshape(rows.shape).contiguous()
        d_residual, d_x, d_parameters = layer_norm_bwd_op(
            d_rows, d_sum, rows, weight, forward.mean, forward.rstd, h.dtype, *arguments
        )
        d_weight += d_parameters[0]
        d_bias += d_parameters[1]
        d_residual = d_residual.view(h.shape)
        return (d_x.view(h.shape) if d_x.dim() == 2 else d_residual), d_residual
    wide = d_normed.to(weight.dtype), h.to(weight.dtype)
    d_residual, d_scale, d_shift = torch.ops.aten.native_layer_norm_backward(
        *wide, h.shape[-1:], forward.mean, forward.rstd, weight, weight, [True, True, True]
    )
    d_weight += d_scale
    d_bias += d_shift
    d_residual = d_residual.to(h.dtype)
    if d_h is not None:
        d_residual = d_residual + d_h
    d_x = dropout_reference(d_residual, dropout.key, dropout.layout) if dropout else d_residual
    return d_x, d_residual


@step_of("linear")
def linear_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x @ weight.T + bias in ``x``'s dtype: ``x`` ``[..., K]``, ``weight`` ``[N, K]``, ``bias`` ``[N]``."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if not _is_fused("linear", x):
        return F.linear(x, weight, bias)
    return product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], weight.shape[0])


@step_of("linear")
def linear_add_forward(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor | None:
    """Return residual + x @ weight.T + bias where one kernel computes it, else None: the next norm adds for less."""
    if not _is_fused("linear", x):
        return None
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    out = added_product(x.flatten(0, -2), weight, bias, residual.flatten(0, -2))
    return None if out is None else out.view(residual.shape)


@step_of("linear")
def linear_activation_forward(
    x: Tensor, weight: Tensor, bias: Tensor, kind: Activation, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Return activation(x @ weight.T + bias), and with ``keep`` what the activation read, else None."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if not _is_fused("linear", x):
        pre = F.linear(x, weight, bias)
        return activation(pre, kind), pre if keep else None
    out, pre = activated_product(x.flatten(0, -2), weight, bias, kind, keep)
    shape = *x.shape[:-1], weight.shape[0]
    return out.view(shape), None if pre is None else pre.view(shape)


@step_of("linear")
def linear_input_gradient(d_y: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return d_y @ weight, the gradient of what a linear map read, added to ``residual`` where there is one."""
    weight = weight.to(d_y.dtype)
    if _is_fused("linear", d_y):
        added = None if residual is None else residual.flatten(0, -2)
        return input_gradient(d_y.flatten(0, -2), weight, added).view(*d_y.shape[:-1], weight.shape[1])
    d_x = d_y @ weight
    return d_x if residual is None else residual + d_x


@step_of("linear")
def linear_activation_input_gradient(
    d_y: Tensor, weight: Tensor, pre: Tensor, kind: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    """Return d_pre = (d_y @ weight) · activation'(pre), activation(pre), and Σ d_pre over rows, float32 or wider.

    For a linear map that read activation(pre); the sum is the gradient of the bias in ``pre``.
    """
    weight = weight.to(d_y.dtype)
    if not _is_fused("linear", d_y):
        return activation_backward(d_y @ weight, pre, kind)
    d_pre, value, sums = activated_input_gradient(d_y.flatten(0, -2), weight, pre.flatten(0, -2), kind)
    return d_pre.view(pre.shape), value.view(pre.shape), sums


@step_of("linear")
def linear_parameter_gradients(d_y: Tensor, x: Tensor, d_weight: Tensor, d_bias: Tensor) -> None:
    """d_weight += d_yᵀ @ x and d_bias += Σ d_y, products of bf16 summed in the buffer's dtype."""
    linear_weight_gradient(d_y, x, d_weight)
    rows = d_y.flatten(0, -2)
    d_bias += bias_gradient(rows, d_bias.dtype) if _is_fused("linear", rows) else rows.sum(0, dtype=d_bias.dtype)


@step_of("linear")
def linear_weight_gradient(d_y: Tensor, x: Tensor, d_weight: Tensor) -> None:
    """d_weight += d_yᵀ @ x, products of bf16 summed in the buffer's dtype."""
    rows, x_rows = d_y.flatten(0, -2), x.flatten(0, -2)
    add_product_(d_weight, rows.T, x_rows)


def _op_arguments(dropout: Dropout | None, rows: Tensor) -> OpArguments:
    if dropout is None:
        return op_arguments(None, None, rows.device)
    return op_arguments(dropout.key, dropout.layout, rows.device)


def _is_fused(op: str, x: Tensor) -> bool:
    return backend.choose(op, x.device).path == "fused"
