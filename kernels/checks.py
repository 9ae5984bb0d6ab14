"""Checks of an op's arguments: a ValueError that names op and argument, what was expected and what was given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import Layout, Padded

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes the kernels compute on, in float32 inside."""


def check_shape(op: str, name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    """Refuse a ``tensor`` of another shape."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, expected {list(expected)}")


def check_dtype(op: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype] = FUSED_DTYPES) -> None:
    """Refuse a ``tensor`` of a dtype that is not ``allowed``."""
    if tensor.dtype not in allowed:
        expected = ", ".join(str(dtype) for dtype in allowed)
        raise ValueError(f"{op}: {name} is {tensor.dtype}, expected {expected}")


def check_device(op: str, first: str, device: torch.device, **tensors: Tensor | None) -> None:
    """Refuse ``tensors`` that are not on ``device``, that of argument ``first``."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected {device} as {first}")


def check_layout(op: str, name: str, tensor: Tensor, layout: Layout) -> None:
    """Refuse a ``tensor`` ``[..., D]`` whose leading dimensions are not those of ``layout``."""
    expected = tuple(layout.mask.shape) if isinstance(layout, Padded) else (layout.total,)
    if tuple(tensor.shape[:-1]) != expected:
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, expected {[*expected, 'D']} as layout says")
