"""Attention in plain PyTorch, forward and backward: the specification of :mod:`.attention`."""

import math

import torch
from torch import Tensor

from .dropout import DropoutKey, attention_dropout
from .layout import Layout, Packed
from .length_groups import length_groups


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
    """Compute :func:`attention` through the full score matrix; packed sequences are padded around it, in groups."""
    if isinstance(query_layout, Packed) and isinstance(key_layout, Packed):
        queries, keys = length_groups(query_layout, key_layout)
        tokens = queries.pad(query), keys.pad(key), keys.pad(value)
        groups = zip(*tokens, queries.layouts(), keys.layouts(), strict=True)
        return queries.unpad([attention_reference(*group, causal=causal, dropout=dropout) for group in groups])
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
        queries, keys = length_groups(query_layout, key_layout)
        tokens = queries.pad(d_out), queries.pad(query), keys.pad(key), keys.pad(value)
        groups = zip(*tokens, queries.layouts(), keys.layouts(), strict=True)
        gradients = [attention_bwd_reference(*group, causal=causal, dropout=dropout) for group in groups]
        d_query, d_key, d_value = zip(*gradients, strict=True)
        return queries.unpad(d_query), keys.unpad(d_key), keys.unpad(d_value)
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
