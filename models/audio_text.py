"""The audio-text model of stage 2: two encoders, two poolers, a caption decoder (paper, section III-B)."""

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.attention_pool import attention_pool
from ..kernels.dropout import DropoutKey
from ..kernels.layout import Layout, Patches
from .audio_mae import AudioEncoder
from .by_hand import Stash
from .config import AudioTextConfig
from .layers import Linear, Table
from .text import CaptionDecoder, TextEncoder, normalise


class Pooler(nn.Module):
    """Attention pooling and a projection into the shared embedding space."""

    def __init__(self, width: int, heads: int, projection_width: int, std: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = Table(width)
        self.key = Linear(width, width, std)
        self.value = Linear(width, width, std)
        self.projection = Linear(width, projection_width)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Return unit embeddings ``[B, P]`` of ``hidden`` states."""
        pooled = attention_pool(
            hidden,
            self.query.weight,
            self.key.weight,
            self.key.bias,
            self.value.weight,
            self.value.bias,
            self.heads,
            layout,
        )
        return normalise(self.projection(pooled))

    def flops(self, lengths: Tensor) -> int:
        """FLOPs of a forward pass over sequences of these ``lengths``, as the fused op computes it.

        Per token and head a score and a weighted sum, per sequence the values of what was pooled. Keys and values of
        every token, which the formula asks for, are not counted, for they need not be computed; nor is the one product
        of the query with the key weight.
        """
        tokens, sequences = int(lengths.sum()), len(lengths)
        pooled = 4 * tokens * self.query.weight.numel() * self.heads + self.value.flops(sequences)
        return pooled + self.projection.flops(sequences)

    def flops_saved(self, lengths: Tensor) -> int:
        """FLOPs by which computing keys and values of every token, as the reference does, exceeds :meth:`flops`."""
        tokens, width = int(lengths.sum()), self.query.weight.numel()
        projected = self.key.flops(tokens) + self.value.flops(tokens) + 4 * tokens * width
        return projected + self.projection.flops(len(lengths)) - self.flops(lengths)


class LogitScale(nn.Module):
    """The learned log of the logits' multiplier."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.value = nn.Parameter(torch.empty(()))

    def reset(self, generator: torch.Generator) -> None:
        """Set the initial value."""
        self.value.fill_(self.initial)


class AudioText(nn.Module):
    """Audio and text towers that share an embedding space, and a decoder that captions, if it has any layers."""

    def __init__(self, config: AudioTextConfig) -> None:
        super().__init__()
        self.config = config
        self.audio_encoder = AudioEncoder(config.audio)
        self.audio_pooler = Pooler(config.audio.width, config.pool_heads, config.projection_width)
        self.text_encoder = TextEncoder(config.text)
        self.text_pooler = Pooler(config.text.width, 1, config.projection_width, std=0.02)
        if config.caption_layers:
            self.caption_decoder = CaptionDecoder(
                config.text, config.caption_layers, config.audio.width, config.text.vocab_size
            )
        self.logit_scale = LogitScale(config.initial_logit_scale)

    def require_captions(self) -> None:
        """Raise InputError where there is no caption decoder."""
        if not self.config.caption_layers:
            raise InputError(
                "the model has no caption decoder, for it was trained with objective.caption_weight 0; expected one "
                "that was trained to caption"
            )

    def encode_audio(self, patches: Patches, stash: Stash | None = None) -> tuple[Tensor, Tensor]:
        """Return hidden states of ``patches`` and unit embeddings ``[B, P]``; ``stash``: :func:`~.stash.run_stack`."""
        hidden = self.audio_encoder(patches, stash)
        return hidden, self.audio_pooler(hidden, patches.layout)

    def encode_text(
        self, token_ids: Tensor, layout: Layout, dropout_key: DropoutKey | None = None, stash: Stash | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states of ``token_ids`` (``[B, L]`` or ``[T]``) and unit embeddings ``[B, P]``."""
        hidden = self.text_encoder(token_ids, layout, dropout_key.at(0) if dropout_key else None, stash=stash)
        return hidden, self.text_pooler(hidden, layout)

    def decode_caption(
        self,
        text_hidden: Tensor,
        layout: Layout,
        audio_hidden: Tensor,
        audio_layout: Layout,
        dropout_key: DropoutKey | None = None,
        stash: Stash | None = None,
    ) -> Tensor:
        """Return the caption decoder's hidden states, of ``text_hidden``'s shape."""
        key = dropout_key.at(1) if dropout_key else None
        return self.caption_decoder(text_hidden, layout, audio_hidden, audio_layout, key, stash=stash)

    def embedding_flops(self, audio_lengths: Tensor, text_lengths: Tensor) -> int:
        """FLOPs of embedding clips of so many patches and captions of so many tokens (``[B]`` each), forward."""
        audio = self.audio_encoder.flops(audio_lengths) + self.audio_pooler.flops(audio_lengths)
        return audio + self.text_encoder.flops(text_lengths) + self.text_pooler.flops(text_lengths)

    def flops(self, audio_lengths: Tensor, text_lengths: Tensor) -> int:
        """FLOPs of a forward pass, with captioning where there is a decoder; the similarity matrix is not counted."""
        embeddings = self.embedding_flops(audio_lengths, text_lengths)
        return (
            embeddings
            if not self.config.caption_layers
            else embeddings + self.caption_decoder.flops(text_lengths, audio_lengths)
        )
