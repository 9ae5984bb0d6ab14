"""Attention in plain PyTorch, forward and backward: the specification of :mod:`.attention`."""

import math

import torch
from torch import Tensor

from .dropout import DropoutKey, attention_dropout
from .layout import Layout, Packed, pad, padded_layout, unpad


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
        padded = pad(query, query_layout), pad(key, key_layout), pad(value, key_layout)
        layouts = padded_layout(query_layout), padded_layout(key_layout)
        return unpad(attention_reference(*padded, *layouts, causal=causal, dropout=dropout), query_layout)
    weights, _ = _weights(query, key, key_layout, causal)
    dropped = attention_dropout(weights, dropout)
    return (dropped.to(value.dtype) @ value.transpose(-3, -2)).transpose(-3, -2)


def attention_bwd_reference(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_layout: Layout,
    key_layout: Layout,
    *,
    causal: bool,
    dropout: DropoutKey | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of query, key and value through the full score matrix, all of it recomputed.

    With weights p, mask m (dropout, scaled) and out = (m p) v: d v = (m p)ᵀ d out, d p = m (d out vᵀ),
    d s = p (d p - Σ p d p), d q = d s k / sqrt(d), d k = d sᵀ q / sqrt(d).
    """
    if isinstance(query_layout, Packed) and isinstance(key_layout, Packed):
        padded = pad(d_out, query_layout), pad(query, query_layout), pad(key, key_layout), pad(value, key_layout)
        layouts = padded_layout(query_layout), padded_layout(key_layout)
        d_query, d_key, d_value = attention_bwd_reference(*padded, *layouts, causal=causal, dropout=dropout)
        return unpad(d_query, query_layout), unpad(d_key, key_layout), unpad(d_value, key_layout)
    weights, allowed = _weights(query, key, key_layout, causal)
    d_out, query, key, value = (x.transpose(-3, -2) for x in (d_out, query, key, value))  # [B, H, L, d]
    d_value = attention_dropout(weights, dropout).transpose(-2, -1) @ d_out
    d_weights = attention_dropout(d_out @ value.transpose(-2, -1), dropout)
    d_scores = weights * (d_weights - (weights * d_weights).sum(dim=-1, keepdim=True))
    d_scores = d_scores.masked_fill(~allowed, 0.0) / math.sqrt(query.shape[-1])
    d_query, d_key = d_scores @ key, d_scores.transpose(-2, -1) @ query
    return d_query.transpose(-3, -2), d_key.transpose(-3, -2), d_value.transpose(-3, -2)


def _weights(query: Tensor, key: Tensor, key_layout: Layout, causal: bool) -> tuple[Tensor, Tensor]:
    """Weights ``[B, H, Lq, Lk]`` before dropout, and which of them are allowed to be above zero."""
    query, key = query.transpose(-3, -2), key.transpose(-3, -2)  # [B, H, L, d]
    scores = (query @ key.transpose(-2, -1)) / math.sqrt(query.shape[-1])
    allowed = key_layout.valid[:, None, None, :]
    if causal:
        queries, keys = scores.shape[-2:]
        allowed = allowed & torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=-1), allowed
