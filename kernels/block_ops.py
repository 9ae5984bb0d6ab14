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
from .column_sum import column_sum_op
from .dropout import DropoutKey, OpArguments, dropout_reference, op_arguments
from .layer_norm_triton import layer_norm_bwd_op, layer_norm_fwd_op
from .layout import Layout
from .products import add_product_


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


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x @ weight.T + bias in ``x``'s dtype: ``x`` ``[..., K]``, ``weight`` ``[N, K]``, ``bias`` ``[N]``."""
    return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def linear_input_gradient(d_y: Tensor, weight: Tensor) -> Tensor:
    """Return d_y @ weight, the gradient of what :func:`linear_forward` read."""
    return d_y @ weight.to(d_y.dtype)


def linear_parameter_gradients(d_y: Tensor, x: Tensor, d_weight: Tensor, d_bias: Tensor) -> None:
    """d_weight += d_yᵀ @ x and d_bias += Σ d_y, products of bf16 summed in the buffer's dtype."""
    rows, x_rows = d_y.flatten(0, -2), x.flatten(0, -2)
    add_product_(d_weight, rows.T, x_rows)
    if _is_fused("linear", rows):
        d_bias += column_sum_op(rows.contiguous(), d_bias.dtype)
    else:
        d_bias += rows.sum(0, dtype=d_bias.dtype)


def _op_arguments(dropout: Dropout | None, rows: Tensor) -> OpArguments:
    if dropout is None:
        return op_arguments(None, None, rows.device)
    return op_arguments(dropout.key, dropout.layout, rows.device)


def _is_fused(op: str, x: Tensor) -> bool:
    return backend.choose(op, x.device).path == "fused"
