"""Precision of products and sums: what autocast asks for, how narrow the numbers may be that are summed, and
how wide gradients of parameters are.

``meta`` tensors have no autocast of their own. They stand for a CUDA device's, so they follow CUDA's, and what is
computed on them has the dtypes it would have there.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x``, a half-precision one as float32."""
    return x.float() if x.element_size() < 4 else x


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype in which autocast wants products on ``device``, None where it is off."""
    kind = _autocast_kind(device)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Run the body with autocast to ``dtype`` on ``device``; with None, with autocast off."""
    if device.type == "meta":
        return _meta_autocast(dtype)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextlib.contextmanager
def _meta_autocast(dtype: torch.dtype | None) -> Iterator[None]:
    # Not `torch.autocast("cuda")`, which is refused where there is no CUDA device.
    enabled, before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype is not None)
    torch.set_autocast_dtype("cuda", dtype or before)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", enabled)
        torch.set_autocast_dtype("cuda", before)


def _autocast_kind(device: torch.device) -> str:
    return "cuda" if device.type == "meta" else device.type


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
