"""The audio encoder and the masked autoencoder of stage 1 (paper, section III-A; the authors' ``mae.py``)."""

from torch import Tensor, nn

from ..kernels.layout import Layout, Patches, PatchPositions
from ..kernels.log_mel import FREQ_PATCHES, PATCH_PIXELS
from ..kernels.mae_decoder_input import decoder_layout, mae_decoder_input
from ..kernels.patch_embed import patch_embed
from .block import PreNormBlock
from .by_hand import Stash
from .config import AudioMAEConfig, TransformerConfig
from .layers import LayerNorm, Linear, Table, linear_dtype
from .stash import run_stack


class AudioEncoder(nn.Module):
    """Patches of log-mel to hidden states; any set of patches of a clip, in any number."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.patch = Linear(PATCH_PIXELS, config.width)
        self.freq_embedding = Table(FREQ_PATCHES, config.width)
        self.blocks = nn.ModuleList(PreNormBlock(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.width, eps=1e-6)

    def forward(self, patches: Patches, stash: Stash | None = None) -> Tensor:
        """Return hidden states ``[B, L, D]`` or ``[T, D]`` of ``patches``; ``stash``: :func:`~.stash.run_stack`."""
        x = patch_embed(patches, self.patch.weight, self.patch.bias, self.freq_embedding.weight)
        x = run_stack(list(self.blocks), x.to(linear_dtype(x)), patches.layout, stash)
        return self.norm(x)

    def flops(self, lengths: Tensor) -> int:
        """FLOPs of a forward pass over clips of so many patches (``lengths`` ``[B]``)."""
        return self.patch.flops(int(lengths.sum())) + sum(block.flops(lengths) for block in self.blocks)  # type: ignore[operator]


class MAEDecoder(nn.Module):
    """Hidden states of the visible patches and the positions of the others to predicted pixels of both."""

    def __init__(self, config: TransformerConfig, encoder_width: int) -> None:
        super().__init__()
        self.embed = Linear(encoder_width, config.width)
        self.freq_embedding = Table(FREQ_PATCHES, config.width)
        self.restore_token = Table(config.width)
        self.blocks = nn.ModuleList(PreNormBlock(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.width, eps=1e-6)
        self.pixels = Linear(config.width, PATCH_PIXELS)

    def forward(
        self, encoded: Tensor, visible: PatchPositions, restore: PatchPositions, stash: Stash | None = None
    ) -> tuple[Tensor, Layout]:
        """Return predicted pixels ``[B, Lv + Lr, 256]`` or ``[Tv + Tr, 256]`` (visible first) and their layout."""
        x = mae_decoder_input(
            self.embed(encoded), visible, restore, self.restore_token.weight, self.freq_embedding.weight
        )
        layout = decoder_layout(visible.layout, restore.layout)
        x = run_stack(list(self.blocks), x.to(linear_dtype(x)), layout, stash)
        return self.pixels(self.norm(x)), layout

    def flops(self, visible_lengths: Tensor, restore_lengths: Tensor) -> int:
        """FLOPs of a forward pass over clips of so many visible and restored patches."""
        lengths = visible_lengths + restore_lengths
        ends = self.embed.flops(int(visible_lengths.sum())) + self.pixels.flops(int(lengths.sum()))
        return ends + sum(block.flops(lengths) for block in self.blocks)  # type: ignore[operator]


class AudioMAE(nn.Module):
    """The masked autoencoder: the encoder sees the visible patches only."""

    def __init__(self, config: AudioMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = AudioEncoder(config.encoder)
        self.decoder = MAEDecoder(config.decoder, config.encoder.width)

    def forward(self, visible: Patches, restore: PatchPositions, stash: Stash | None = None) -> tuple[Tensor, Layout]:
        """Return predicted pixels of visible and restored patches and their layout; see :class:`MAEDecoder`."""
        return self.decoder(self.encoder(visible, stash), visible.positions, restore, stash)

    def flops(self, visible_lengths: Tensor, restore_lengths: Tensor) -> int:
        """FLOPs of a forward pass over clips of so many visible and restored patches (``[B]`` each)."""
        return self.encoder.flops(visible_lengths) + self.decoder.flops(visible_lengths, restore_lengths)
