"""Sizes of the networks, as frozen dataclasses, and the three named sizes: ``paper``, ``ablation``, ``demo``."""

import math
from dataclasses import dataclass, field

from ..errors import InputError

ROBERTA_VOCABULARY = 50_265
MOST_LAYERS = 256  # a damaged file must not make us build a billion of them
MOST_FEATURES = 1 << 24
MAX_PATCHES = 1500  # of a clip in use: 30 s of audio, the budget of the authors' evaluation on Clotho
MAX_TEXT_TOKENS = 77  # of a caption, <s> and </s> included (paper, section IV)


def _check_range(config: object, most: int, *names: str) -> None:
    for name in names:
        if not 1 <= getattr(config, name) <= most:
            raise InputError(f"{name} is {getattr(config, name)}; expected 1 to {most}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of transformer blocks."""

    width: int = 768
    """Features of a token; an even multiple of heads."""
    layers: int = 12
    """Number of blocks."""
    heads: int = 8
    """Attention heads."""
    mlp_width: int = 3072
    """Features of the feed-forward's hidden layer."""

    def __post_init__(self) -> None:
        """Check that the sizes fit each other."""
        _check_range(self, MOST_LAYERS, "layers")
        _check_range(self, MOST_FEATURES, "width", "heads", "mlp_width")
        if self.width % (2 * self.heads):
            raise InputError(f"width {self.width} is not an even multiple of heads {self.heads}: change one of them")


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """The causal RoBERTa text encoder."""

    heads: int = 12
    """Attention heads."""
    vocab_size: int = ROBERTA_VOCABULARY
    """Rows of the word embedding; the tokenizer may use fewer."""
    max_positions: int = 514
    """Rows of the position embedding; positions count from 0."""
    dropout: float = 0.1
    """Dropout rate of embeddings, attention weights and block outputs while training."""

    def __post_init__(self) -> None:
        """Check sizes and the dropout rate."""
        super().__post_init__()
        _check_range(self, MOST_FEATURES, "vocab_size", "max_positions")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout is {self.dropout}; expected 0 <= dropout < 1")


@dataclass(frozen=True, kw_only=True)
class AudioMAEConfig:
    """The masked autoencoder of stage 1."""

    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    """The audio encoder."""
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    """The decoder that restores the masked patches."""


@dataclass(frozen=True, kw_only=True)
class AudioTextConfig:
    """The audio-text model of stage 2."""

    audio: TransformerConfig = field(default_factory=TransformerConfig)
    """The audio encoder; the same sizes as the stage-1 run it starts from."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text encoder."""
    caption_layers: int = 4
    """Blocks of the caption decoder, which has the text encoder's width and heads; 0 leaves the decoder out."""
    pool_heads: int = 8
    """Heads of the audio pooler; the text pooler has one."""
    projection_width: int = 768
    """Features of the shared embedding space."""
    initial_logit_scale: float = 2.0
    """Log of the initial logit multiplier (temperature = exp(-logit_scale))."""

    def __post_init__(self) -> None:
        """Check the ranges, and that the pooler's heads divide the audio width."""
        if not math.isfinite(self.initial_logit_scale):
            raise InputError(f"initial_logit_scale is {self.initial_logit_scale}; expected a number")
        if not 0 <= self.caption_layers <= MOST_LAYERS:
            raise InputError(f"caption_layers is {self.caption_layers}; expected 0 to {MOST_LAYERS}")
        _check_range(self, MOST_FEATURES, "projection_width")
        if self.pool_heads < 1 or self.audio.width % self.pool_heads:
            raise InputError(f"pool_heads {self.pool_heads} does not divide audio.width {self.audio.width}")


NetworkConfig = AudioMAEConfig | AudioTextConfig


def _ablation_transformer() -> TransformerConfig:
    return TransformerConfig(width=512, layers=12, heads=8, mlp_width=1024)


def _demo_transformer() -> TransformerConfig:
    return TransformerConfig(width=96, layers=3, heads=4, mlp_width=288)


AUDIO_MAE_SIZES: dict[str, AudioMAEConfig] = {
    "paper": AudioMAEConfig(),
    "ablation": AudioMAEConfig(encoder=_ablation_transformer(), decoder=_ablation_transformer()),
    "demo": AudioMAEConfig(
        encoder=_demo_transformer(), decoder=TransformerConfig(width=96, layers=1, heads=4, mlp_width=192)
    ),
}

AUDIO_TEXT_SIZES: dict[str, AudioTextConfig] = {
    "paper": AudioTextConfig(),
    "ablation": AudioTextConfig(audio=_ablation_transformer()),
    "demo": AudioTextConfig(
        audio=_demo_transformer(),
        text=TextConfig(width=96, layers=2, heads=4, mlp_width=192, vocab_size=512, max_positions=96, dropout=0.0),
        caption_layers=2,
        pool_heads=4,
        projection_width=96,
        initial_logit_scale=2.5,
    ),
}
