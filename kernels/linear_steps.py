"""Products of linear layers with what surrounds them, by whom :mod:`.linear_choice` says: the fused path's steps.

``[rows, features]`` of one dtype the kernels take, any strides; weights are ``[out, in]``. Outside of autograd.
``asked`` is who was asked for when the forward pass ran, where that is another function's call; None means now.
"""

import torch
from torch import Tensor

from .activation import Activation, activation_bwd_op, activation_fwd_op
from .column_sum import column_sum_op
from .linear_choice import LinearProvider, LinearStep, choose_linear
from .linear_triton import linear_dgrad_op, linear_fwd_op
from .products import product_as

Asked = LinearProvider | None


def product(x: Tensor, weight: Tensor, bias: Tensor, asked: Asked = None) -> Tensor:
    """Return x Wᵀ + b."""
    if _forward_by("bias", weight, asked) == "triton":
        return linear_fwd_op(*_contiguous(x, weight, bias), None, "", False)[0]
    return torch.addmm(bias, x, weight.T)


def activated_product(
    x: Tensor, weight: Tensor, bias: Tensor, kind: Activation, keep_pre: bool, asked: Asked = None
) -> tuple[Tensor, Tensor | None]:
    """Return activation(x Wᵀ + b), and with ``keep_pre`` what it read, else None."""
    if _forward_by("activation", weight, asked) == "triton":
        out, pre = linear_fwd_op(*_contiguous(x, weight, bias), None, kind, keep_pre)
    else:
        pre = torch.addmm(bias, x, weight.T)
        out = activation_fwd_op(pre, kind)
    return out, pre if keep_pre else None


def added_product(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, asked: Asked = None) -> Tensor | None:
    """Return residual + x Wᵀ + b where one kernel does it; None where a later pass adds the residual for less."""
    if _forward_by("residual", weight, asked) == "triton":
        return linear_fwd_op(*_contiguous(x, weight, bias, residual), "", False)[0]
    return None


def input_gradient(d_y: Tensor, weight: Tensor, residual: Tensor | None = None, asked: Asked = None) -> Tensor:
    """Return d_y W, added to ``residual`` where there is one."""
    if _backward_by("dgrad" if residual is None else "dgrad_residual", weight, asked) == "triton":
        added = None if residual is None else residual.contiguous()
        return linear_dgrad_op(*_contiguous(d_y, weight), added, None, "")[0]
    d_x = d_y @ weight
    return d_x if residual is None else residual + d_x


def activated_input_gradient(
    d_y: Tensor, weight: Tensor, pre: Tensor, kind: Activation, asked: Asked = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return d = (d_y W) · activation'(pre), activation(pre), and the sums of d over rows, float32."""
    if _backward_by("dgrad_activation", weight, asked) == "triton":
        return linear_dgrad_op(*_contiguous(d_y, weight), None, pre.contiguous(), kind)
    return activation_bwd_op(d_y @ weight, pre.contiguous(), kind, True, torch.float32)


def weight_gradient(d_y: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return d_yᵀ x in ``dtype``: where that is float32, products of 16-bit numbers are not rounded in between."""
    return product_as(d_y.T, x, dtype)


def bias_gradient(d_y: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sums of ``d_y`` over rows."""
    return column_sum_op(d_y.contiguous(), dtype)


def _forward_by(step: LinearStep, weight: Tensor, asked: Asked) -> LinearProvider:
    return choose_linear(step, weight.device, weight.shape[1], weight.shape[0], asked)


def _backward_by(step: LinearStep, weight: Tensor, asked: Asked) -> LinearProvider:
    return choose_linear(step, weight.device, weight.shape[0], weight.shape[1], asked)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]
