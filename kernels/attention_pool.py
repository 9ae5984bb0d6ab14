"""Attention pooling: one learned query per head reads a whole sequence into one vector."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend
from .layout import Layout, Packed, pad, padded_layout
from .spec import Case, Inputs, MakeInputs, Spec, Work


def attention_pool(
    hidden: Tensor,
    query: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    heads: int,
    layout: Layout,
) -> Tensor:
    """Return concat over heads of softmax(q · K(h) / sqrt(head_dim)) V(h): ``[B, D]``.

    ``hidden`` ``[B, L, D]`` or ``[T, D]``; ``query`` ``[D]``, viewed as (heads, D / heads); weights ``[D, D]``, biases
    ``[D]``. A padded sequence with no valid token is averaged over its slots, so the result stays finite.
    """
    return _dispatch(hidden, query, key_weight, key_bias, value_weight, value_bias, heads, layout)


def attention_pool_reference(
    hidden: Tensor,
    query: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    heads: int,
    layout: Layout,
) -> Tensor:
    """Compute :func:`attention_pool` with keys and values of every token; packed tokens are padded first."""
    if isinstance(layout, Packed):
        hidden, layout = pad(hidden, layout), padded_layout(layout)
    key = F.linear(hidden, key_weight, key_bias).unflatten(-1, (heads, -1))
    value = F.linear(hidden, value_weight, value_bias).unflatten(-1, (heads, -1))
    scores = torch.einsum("blhd,hd->bhl", key, query.view(heads, -1).to(key.dtype)) / math.sqrt(key.shape[-1])
    scores = scores.masked_fill(~layout.mask[:, None, :], torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).to(value.dtype)
    return torch.einsum("bhl,blhd->bhd", weights, value).flatten(1)


_dispatch = backend.register("attention_pool", reference=attention_pool_reference)


def _sequences(lengths: list[int], width: int, heads: int, *, padded: bool = False) -> MakeInputs:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        packed = Packed.from_lengths(lengths, device)
        slots = (len(lengths), packed.padded_width) if padded else (packed.total,)
        scales = {
            "hidden": ((*slots, width), 1.0),
            "query": ((width,), 1.0),
            "key_weight": ((width, width), width**-0.5),
            "key_bias": ((width,), 0.1),
            "value_weight": ((width, width), width**-0.5),
            "value_bias": ((width,), 0.1),
        }
        tensors = {
            name: (torch.randn(shape, generator=generator) * scale).to(device, dtype).requires_grad_()
            for name, (shape, scale) in scales.items()
        }
        return {**tensors, "heads": heads, "layout": padded_layout(packed) if padded else packed}

    return make


def _forward_work(inputs: Inputs) -> Work:
    """One read of the hidden states: queries absorb the key projection, values are projected after pooling."""
    hidden, heads = inputs["hidden"], inputs["heads"]
    return Work(bytes=hidden.nbytes, flops=4 * hidden.numel() * heads)


def _backward_work(inputs: Inputs) -> Work:
    """The hidden states are read, their gradient is written."""
    hidden, heads = inputs["hidden"], inputs["heads"]
    return Work(bytes=2 * hidden.nbytes, flops=8 * hidden.numel() * heads)


SPEC = Spec(
    name="attention_pool",
    op=attention_pool,
    reference=attention_pool_reference,
    cases=(
        Case("packed", _sequences([5, 1, 9], 48, 4)),
        Case("padded", _sequences([5, 1, 9], 48, 4, padded=True)),
        Case("one head", _sequences([3, 18], 32, 1)),
        Case("a padded sequence with no token", _sequences([4, 0], 16, 2, padded=True)),
        Case("stage 2, audio", _sequences([512] * 256, 768, 8), paper=True),
        Case("stage 2, captions", _sequences([18] * 4096, 768, 1), paper=True),
    ),
    forward=_forward_work,
    backward=_backward_work,
)
