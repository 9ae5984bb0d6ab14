"""Scaled dot-product attention over padded or packed sequences: self, causal and cross."""

import math

import torch
from torch import Tensor

from . import backend
from .dropout import DropoutKey, attention_dropout
from .layout import Layout, Packed, Padded, pad, padded_layout, unpad


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_layout: Layout,
    key_layout: Layout,
    *,
    causal: bool = False,
    dropout: DropoutKey | None = None,
) -> Tensor:
    """Return softmax(q kᵀ / sqrt(head_dim)) v for each head.

    ``query`` ``[B, Lq, H, d]`` or ``[Tq, H, d]``, ``key`` and ``value`` likewise with their own layout; the result has
    the query's shape. Keys of padding slots get no weight; where a sequence has no valid key at all, every slot gets
    the same weight (padded layout), so the result stays finite. ``causal`` aligns the last query slot with the last
    key slot, so that a cached prefix of keys needs no argument (padded layout; packed sequences must have as many
    queries as keys). Padding queries are computed; their values mean nothing. Raises ValueError for mixed layouts.
    """
    return _dispatch(query, key, value, query_layout, key_layout, causal=causal, dropout=dropout)


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_layout: Layout,
    key_layout: Layout,
    *,
    causal: bool,
    dropout: DropoutKey | None,
) -> Tensor:
    """Compute :func:`attention` through the full score matrix; packed sequences are padded around it."""
    if isinstance(query_layout, Packed) and isinstance(key_layout, Packed):
        if causal and query_layout.total != key_layout.total:
            raise ValueError("attention: causal attention over packed sequences takes the same layout for both sides")
        padded_query, padded_key = padded_layout(query_layout), padded_layout(key_layout)
        out = attention_reference(
            pad(query, query_layout),
            pad(key, key_layout),
            pad(value, key_layout),
            padded_query,
            padded_key,
            causal=causal,
            dropout=dropout,
        )
        return unpad(out, query_layout)
    if not (isinstance(query_layout, Padded) and isinstance(key_layout, Padded)):
        raise ValueError("attention: query and key must both be Padded or both Packed")

    query, key, value = (x.transpose(-3, -2) for x in (query, key, value))  # [B, H, L, d]
    scores = (query @ key.transpose(-2, -1)) / math.sqrt(query.shape[-1])
    allowed = key_layout.mask[:, None, None, :]
    if causal:
        queries, keys = scores.shape[-2:]
        allowed = allowed & torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = attention_dropout(scores.softmax(dim=-1), dropout)
    return (weights.to(value.dtype) @ value).transpose(-3, -2)


_dispatch = backend.register("attention", reference=attention_reference)
