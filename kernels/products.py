"""Matrix products whose sum is wider than their operands, on every device."""

import torch
from torch import Tensor


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total`` += ``left`` @ ``right``, products of 16-bit numbers summed in ``total``'s dtype, float32 or wider."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.device.type in ("cuda", "meta"):  # the latter stand for the former
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
