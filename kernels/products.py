"""Matrix products whose sums are wider than their operands, on every device."""

import torch
from torch import Tensor

_SUM_WIDELY = ("cuda", "meta")
"""Devices whose products of 16-bit numbers give 32-bit sums at no cost; ``meta`` stands for CUDA."""


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total`` += ``left`` @ ``right``, products of 16-bit numbers summed in ``total``'s dtype, float32 or wider."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.device.type in _SUM_WIDELY:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def product_as(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``left`` @ ``right`` in ``dtype``: where that is float32, products are not rounded in between."""
    if dtype == left.dtype or dtype != torch.float32:
        return (left @ right).to(dtype)
    if left.device.type in _SUM_WIDELY:
        return torch.mm(left, right, out_dtype=dtype)
    return left.float() @ right.float()
