"""The causal RoBERTa text encoder and the caption decoder (the authors' ``roberta_text_model.py``)."""

import torch
from torch import Tensor, nn

from ..kernels.dropout import DropoutKey, dropout
from ..kernels.layout import Layout
from .block import PostNormBlock, StackCache
from .by_hand import Stash
from .config import TextConfig, TransformerConfig
from .layers import LayerNorm, Linear, Table, linear_dtype
from .stash import run_stack


class TextEncoder(nn.Module):
    """Token ids to hidden states, causal, so that the caption decoder can continue from them.

    Positions count from 0 (Hugging Face's RoBERTa counts from 2) and padding does not change them.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.word_embedding = Table(config.vocab_size, config.width)
        self.position_embedding = Table(config.max_positions, config.width)
        self.type_embedding = Table(1, config.width)
        self.norm = LayerNorm(config.width, eps=1e-5)
        self.blocks = nn.ModuleList(PostNormBlock(config) for _ in range(config.layers))

    def forward(
        self,
        token_ids: Tensor,
        layout: Layout,
        dropout_key: DropoutKey | None = None,
        cache: StackCache | None = None,
        first_position: int = 0,
        stash: Stash | None = None,
    ) -> Tensor:
        """Return hidden states of ``token_ids`` (int, ``[B, L]`` or ``[T]``); ``stash``: :func:`~.stash.run_stack`.

        With a ``cache``, ``token_ids`` ``[B, 1]`` are the tokens at position ``first_position`` and the cache holds
        those before.
        """
        positions = layout.positions + first_position
        x = self.word_embedding(token_ids) + self.position_embedding(positions) + self.type_embedding.weight[0]
        x = self.norm(x, dtype=linear_dtype(x))
        x = dropout(x, dropout_key.at(0) if dropout_key else None, layout)
        if cache is None:
            return run_stack(
                list(self.blocks), x, layout, stash, dropout_key=dropout_key.at(1) if dropout_key else None
            )
        for number, block in enumerate(self.blocks):
            x = block(x, layout, cache=cache.own[number])
        return x

    def flops(self, lengths: Tensor) -> int:
        """FLOPs of a forward pass over captions of so many tokens (``lengths`` ``[B]``)."""
        return sum(block.flops(lengths) for block in self.blocks)  # type: ignore[operator]


class CaptionDecoder(nn.Module):
    """Text hidden states to hidden states of the next token, with cross-attention to all audio tokens."""

    def __init__(self, config: TransformerConfig, layers: int, audio_width: int, vocab_size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PostNormBlock(config, audio_width) for _ in range(layers))
        self.head = Linear(config.width, vocab_size, std=0.01)

    def forward(
        self,
        text_hidden: Tensor,
        layout: Layout,
        audio_hidden: Tensor,
        audio_layout: Layout,
        dropout_key: DropoutKey | None = None,
        cache: StackCache | None = None,
        stash: Stash | None = None,
    ) -> Tensor:
        """Return hidden states of ``text_hidden``'s shape; ``head`` maps them to logits.

        ``stash`` as in :func:`~.stash.run_stack`; a ``cache`` is for generation, without dropout.
        """
        x = text_hidden
        if cache is None:
            return run_stack(
                list(self.blocks),
                x,
                layout,
                stash,
                dropout_key=dropout_key,
                context=audio_hidden,
                context_layout=audio_layout,
            )
        for number, block in enumerate(self.blocks):
            x = block(
                x,
                layout,
                context=audio_hidden,
                context_layout=audio_layout,
                cache=cache.own[number],
                cross_cache=cache.cross[number],
            )
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Return next-token logits ``[..., V]`` of decoder ``hidden`` states."""
        return self.head(hidden)

    def flops(self, lengths: Tensor, audio_lengths: Tensor) -> int:
        """FLOPs of a forward pass, language-model head included for every token but each caption's last."""
        predicting = int((lengths - 1).clamp_min(0).sum())
        return self.head.flops(predicting) + sum(block.flops(lengths, audio_lengths) for block in self.blocks)  # type: ignore[operator]


def normalise(embedding: Tensor) -> Tensor:
    """Return e / ||e + 1e-10|| over the last dimension; an all-zero vector stays zero."""
    return embedding / torch.linalg.vector_norm(embedding + 1e-10, dim=-1, keepdim=True)
