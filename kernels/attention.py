"""Scaled dot-product attention over padded or packed sequences: self, causal and cross."""

import math
from typing import Any

import torch
from torch import Tensor

from . import backend
from .dropout import DropoutKey, attention_dropout
from .layout import Layout, Packed, Padded, pad, padded_layout, unpad
from .spec import Case, Inputs, MakeInputs, Spec, Work


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


def _sequences(
    query_lengths: list[int],
    key_lengths: list[int] | None = None,
    *,
    heads: int,
    head_dim: int,
    causal: bool = False,
    padded: bool = False,
) -> MakeInputs:
    """Self-attention, or cross-attention to sequences of ``key_lengths``."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        inputs: dict[str, Any] = {"causal": causal, "dropout": None}
        for names, lengths in ((("query",), query_lengths), (("key", "value"), key_lengths or query_lengths)):
            packed = Packed.from_lengths(lengths, device)
            slots = (len(lengths), packed.padded_width) if padded else (packed.total,)
            for name in names:
                values = torch.randn((*slots, heads, head_dim), generator=generator)
                inputs[name] = values.to(device, dtype).requires_grad_()
            inputs[f"{names[0]}_layout"] = padded_layout(packed) if padded else packed
        return inputs

    return make


def _work(inputs: Inputs, products: int, passes: int) -> Work:
    """``products`` matrix products over all pairs of valid tokens, causal or not, and ``passes`` over q."""
    query, key, value = inputs["query"], inputs["key"], inputs["value"]
    pairs = int((inputs["query_layout"].lengths.cpu() * inputs["key_layout"].lengths.cpu()).sum())
    flops = 2 * products * pairs * query.shape[-2] * query.shape[-1]
    return Work(bytes=passes * (query.nbytes + (key.nbytes + value.nbytes) // 2), flops=flops)


SPEC = Spec(
    name="attention",
    op=attention,
    reference=attention_reference,
    cases=(
        Case("packed", _sequences([5, 1, 9], heads=2, head_dim=24)),
        Case("padded", _sequences([5, 1, 9], heads=2, head_dim=24, padded=True)),
        Case("causal", _sequences([7, 3, 18], heads=3, head_dim=16, causal=True)),
        Case("cross", _sequences([7, 3], [40, 8], heads=2, head_dim=16)),
        Case("a padded sequence with no key", _sequences([4, 0], heads=2, head_dim=8, padded=True)),
        Case("stage 1, encoder", _sequences([150] * 512, heads=8, head_dim=96), paper=True),
        Case("stage 1, decoder", _sequences([750] * 128, heads=8, head_dim=96), paper=True),
        Case("stage 2, audio", _sequences([512] * 256, heads=8, head_dim=96), paper=True),
        Case("stage 2, captions", _sequences([18] * 4096, heads=12, head_dim=64, causal=True), paper=True),
        Case("stage 2, cross", _sequences([18] * 256, [512] * 256, heads=12, head_dim=64), paper=True),
    ),
    forward=lambda inputs: _work(inputs, 2, 2),
    backward=lambda inputs: _work(inputs, 5, 4),
)


def attention_fwd(query, key, value, query_layout, key_layout, *, causal, dropout):
    out = attention_reference(query, key, value, query_layout, key_layout, causal=causal, dropout=dropout)
    return out, None


def attention_bwd(d_out, query, key, value, out, saved, query_layout, key_layout, *, causal, dropout):
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (query, key, value)]
        again = attention_reference(*leaves, query_layout, key_layout, causal=causal, dropout=dropout)
        return torch.autograd.grad(again, leaves, d_out)
