"""Transformer blocks: pre-norm (audio) and post-norm (RoBERTa, with or without cross-attention).

Shapes: B clips, L slots, T packed tokens, D width, H heads. Tokens are ``[B, L, D]`` or ``[T, D]`` as the layout says.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..kernels.activation import Activation
from ..kernels.attention import attention
from ..kernels.dropout import DropoutKey
from ..kernels.layout import Layout, Padded
from ..kernels.mlp import mlp
from .config import TransformerConfig
from .layers import LayerNorm, Linear, linear_dtype


@dataclass
class KeyValueCache:
    """Keys and values of the tokens decoded so far, ``[B, L, H, d]``, of one attention layer."""

    key: Tensor | None = None
    value: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append one step's keys and values; returns those of all tokens so far."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat((self.key, key), dim=1), torch.cat((self.value, value), dim=1)
        self.key, self.value = key, value
        return key, value

    def reorder(self, rows: Tensor) -> None:
        """Keep the sequences ``rows`` (beam search)."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key[rows], self.value[rows]


@dataclass
class StackCache:
    """Caches of a stack of blocks: self-attention grows by a token a step, cross-attention is filled once."""

    own: list[KeyValueCache] = field(default_factory=list)
    cross: list[KeyValueCache] = field(default_factory=list)

    @classmethod
    def empty(cls, layers: int) -> "StackCache":
        """Return the cache of a stack that has seen no token."""
        return cls([KeyValueCache() for _ in range(layers)], [KeyValueCache() for _ in range(layers)])

    def reorder(self, rows: Tensor) -> None:
        """Keep the sequences ``rows`` (beam search)."""
        for cache in (*self.own, *self.cross):
            cache.reorder(rows)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, causal: bool, std: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = Linear(width, 3 * width, std)
        self.out = Linear(width, width, std)

    def forward(
        self, x: Tensor, layout: Layout, dropout_key: DropoutKey | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Attend within each sequence; with a ``cache``, ``x`` ``[B, 1, D]`` is the token after the cached ones."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        key_layout = layout
        if cache is not None:
            key, value = cache.extend(key, value)
            key_layout = Padded(torch.ones(key.shape[:2], dtype=torch.bool, device=key.device))
        attended = attention(query, key, value, layout, key_layout, causal=self.causal, dropout=dropout_key)
        return self.out(attended.flatten(-2))

    def flops(self, lengths: Tensor) -> int:
        """FLOPs of a forward pass over sequences of these ``lengths``; a causal mask is not counted as a saving."""
        tokens = int(lengths.sum())
        attended = 4 * int(lengths.square().sum()) * self.out.weight.shape[1]
        return self.qkv.flops(tokens) + self.out.flops(tokens) + attended


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to another of its own width."""

    def __init__(self, width: int, context_width: int, heads: int, std: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width, std)
        self.kv = Linear(context_width, 2 * width, std)
        self.out = Linear(width, width, std)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        context: Tensor,
        context_layout: Layout,
        dropout_key: DropoutKey | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attend from ``x`` to ``context``; a ``cache`` keeps the context's keys and values after the first call."""
        query = self.query(x).unflatten(-1, (self.heads, -1))
        if cache is not None and cache.key is not None and cache.value is not None:
            key, value = cache.key, cache.value
        else:
            key, value = self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(-3)
            if cache is not None:
                cache.extend(key, value)
        attended = attention(query, key, value, layout, context_layout, dropout=dropout_key)
        return self.out(attended.flatten(-2))

    def flops(self, lengths: Tensor, context_lengths: Tensor) -> int:
        """FLOPs of a forward pass from sequences of ``lengths`` to contexts of ``context_lengths``."""
        tokens, context = int(lengths.sum()), int(context_lengths.sum())
        attended = 4 * int((lengths * context_lengths).sum()) * self.out.weight.shape[1]
        return self.query.flops(tokens) + self.kv.flops(context) + self.out.flops(tokens) + attended


class PreNormBlock(nn.Module):
    """x += attention(norm(x)); x += W₂ silu(W₁ norm(x)): the audio encoder's and decoder's block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(config.width, eps=1e-6)
        self.attention = SelfAttention(config.width, config.heads, causal=False)
        self.mlp_norm = LayerNorm(config.width, eps=1e-6)
        self.mlp_in = Linear(config.width, config.mlp_width)
        self.mlp_out = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Transform tokens ``x``; the shape stays."""
        dtype = linear_dtype(x)
        attended = self.attention(self.attention_norm(x, dtype=dtype), layout)
        normed, x = self.mlp_norm.add(attended, x, dtype=dtype)
        return x + feed_forward(self, normed, "silu")

    def flops(self, lengths: Tensor) -> int:
        """FLOPs of a forward pass over sequences of these ``lengths``."""
        tokens = int(lengths.sum())
        return self.attention.flops(lengths) + self.mlp_in.flops(tokens) + self.mlp_out.flops(tokens)


class PostNormBlock(nn.Module):
    """RoBERTa's block, causal: x = norm(x + sublayer(x)) for self-attention, cross-attention if any, feed-forward."""

    def __init__(self, config: TransformerConfig, context_width: int | None = None) -> None:
        super().__init__()
        std = 0.02
        self.attention = SelfAttention(config.width, config.heads, causal=True, std=std)
        self.attention_norm = LayerNorm(config.width, eps=1e-5)
        self.cross_attention = None
        if context_width is not None:
            self.cross_attention = CrossAttention(config.width, context_width, config.heads, std)
            self.cross_attention_norm = LayerNorm(config.width, eps=1e-5)
        self.mlp_in = Linear(config.width, config.mlp_width, std)
        self.mlp_out = Linear(config.mlp_width, config.width, std)
        self.mlp_norm = LayerNorm(config.width, eps=1e-5)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        *,
        context: Tensor | None = None,
        context_layout: Layout | None = None,
        dropout_key: DropoutKey | None = None,
        cache: KeyValueCache | None = None,
        cross_cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Transform tokens ``x``, attending to ``context`` where the block has cross-attention."""
        keys = [dropout_key.at(place) if dropout_key else None for place in range(5)]
        attended = self.attention(x, layout, keys[0], cache)
        x, _ = self.attention_norm.add(attended, x, dropout_key=keys[1], layout=layout)
        if self.cross_attention is not None:
            if context is None or context_layout is None:
                raise ValueError("a block with cross-attention needs context and context_layout")
            attended = self.cross_attention(x, layout, context, context_layout, keys[2], cross_cache)
            x, _ = self.cross_attention_norm.add(attended, x, dropout_key=keys[3], layout=layout)
        fed = feed_forward(self, x, "gelu")
        x, _ = self.mlp_norm.add(fed, x, dropout_key=keys[4], layout=layout)
        return x

    def flops(self, lengths: Tensor, context_lengths: Tensor | None = None) -> int:
        """FLOPs of a forward pass over sequences of ``lengths`` with contexts of ``context_lengths``."""
        tokens = int(lengths.sum())
        flops = self.attention.flops(lengths) + self.mlp_in.flops(tokens) + self.mlp_out.flops(tokens)
        if self.cross_attention is not None and context_lengths is not None:
            flops += self.cross_attention.flops(lengths, context_lengths)
        return flops


def feed_forward(block: PreNormBlock | PostNormBlock, x: Tensor, activation: Activation) -> Tensor:
    """Return W₂ activation(W₁ x + b₁) + b₂."""
    first, second = block.mlp_in, block.mlp_out
    return mlp(x, first.weight, first.bias, second.weight, second.bias, activation)
