"""How wide numbers are: those that are summed, and the gradients of parameters."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x``, a half-precision one as float32."""
    return x.float() if x.element_size() < 4 else x


def gradient_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype autograd wants the gradient of ``x`` in: its own, unless a parameter asks for another."""
    # Tracing, Dynamo knows no grad_dtype; what the traced function returns is cast to it outside.
    if torch.compiler.is_compiling() or not x.is_leaf:
        return x.dtype
    return x.grad_dtype or x.dtype


def set_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Make ``gradient`` the ``grad`` of ``parameter``, to which autograd adds in place; it may be of a wider dtype."""
    parameter.grad_dtype = gradient.dtype
    parameter.grad = gradient
