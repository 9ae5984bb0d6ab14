"""Linear map with bias and an optional activation: the GEMM of every projection and feed-forward layer."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend
from .spec import Case, Inputs, MakeInputs, Spec, Work

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


def _tokens(tokens: int, in_features: int, out_features: int, activation: Activation | None) -> MakeInputs:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        shapes = {"x": (tokens, in_features), "weight": (out_features, in_features), "bias": (out_features,)}
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        tensors["weight"] /= in_features**0.5
        return {name: t.to(device, dtype).requires_grad_() for name, t in tensors.items()} | {"activation": activation}

    return make


def _forward_work(inputs: Inputs) -> Work:
    x, weight = inputs["x"], inputs["weight"]
    out_bytes = x.numel() // x.shape[-1] * weight.shape[0] * x.element_size()
    return Work(bytes=x.nbytes + weight.nbytes + out_bytes, flops=2 * x.numel() * weight.shape[0])


def _backward_work(inputs: Inputs) -> Work:
    """The output's gradient, x and weight are read, three gradients are written; two products."""
    x, weight = inputs["x"], inputs["weight"]
    out_bytes = x.numel() // x.shape[-1] * weight.shape[0] * x.element_size()
    return Work(bytes=out_bytes + 2 * x.nbytes + 2 * weight.nbytes, flops=4 * x.numel() * weight.shape[0])


SPEC = Spec(
    name="linear",
    op=linear,
    reference=linear_reference,
    cases=(
        Case("silu", _tokens(37, 96, 288, "silu")),
        Case("gelu", _tokens(5, 48, 80, "gelu")),
        Case("odd", _tokens(3, 17, 13, None)),
        Case("one token", _tokens(1, 64, 64, None)),
        Case("no token", _tokens(0, 32, 16, "silu")),
        Case("mlp_in", _tokens(131_072, 768, 3072, "silu"), paper=True),
        Case("qkv", _tokens(131_072, 768, 2304, None), paper=True),
        Case("out", _tokens(131_072, 768, 768, None), paper=True),
    ),
    forward=_forward_work,
    backward=_backward_work,
)
