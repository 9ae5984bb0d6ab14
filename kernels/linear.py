"""Linear map with bias and an optional activation: the GEMM of every projection and feed-forward layer."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from . import backend

Activation = Literal["silu", "gelu"]


def linear(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation | None = None) -> Tensor:
    """Return activation(x @ weight.T + bias): ``x`` ``[..., K]``, ``weight`` ``[N, K]``, ``bias`` ``[N]``, any layout.

    ``silu`` is x · sigmoid(x); ``gelu`` the exact one, with erf.
    """
    return _dispatch(x, weight, bias, activation)


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation | None) -> Tensor:
    """Compute :func:`linear` in plain PyTorch."""
    y = F.linear(x, weight, bias)
    if activation is None:
        return y
    return F.silu(y) if activation == "silu" else F.gelu(y)


_dispatch = backend.register("linear", reference=linear_reference)
