"""Layer normalisation over the last dimension."""

import torch.nn.functional as F
from torch import Tensor

from . import backend


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) · weight + bias over the last dimension of ``x`` ``[..., D]``, any layout.

    ``weight`` and ``bias`` ``[D]``; the variance is the biased one.
    """
    return _dispatch(x, weight, bias, eps)


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute :func:`layer_norm` in plain PyTorch."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


_dispatch = backend.register("layer_norm", reference=layer_norm_reference)
