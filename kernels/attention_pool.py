"""Attention pooling: one learned query per head reads a whole sequence into one vector."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend
from .layout import Layout, Packed, pad, padded_layout


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
