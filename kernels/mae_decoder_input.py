"""Input tokens of the masked autoencoder's decoder: each clip's visible tokens, then its restore tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend
from .layout import Layout, Packed, Padded, PatchPositions
from .sincos import sincos_embedding


def decoder_layout(visible: Layout, restore: Layout) -> Layout:
    """Layout of the decoder's sequences: visible slots, then restore slots, of each clip."""
    if isinstance(visible, Padded) and isinstance(restore, Padded):
        return Padded(torch.cat((visible.mask, restore.mask), dim=1))
    if isinstance(visible, Packed) and isinstance(restore, Packed):
        lengths = visible.cu_seqlens + restore.cu_seqlens
        return Packed(lengths, visible.max_len + restore.max_len, visible.total + restore.total)
    raise ValueError("decoder_layout: visible and restore must both be Padded or both Packed")


def interleave(visible: Tensor, restore: Tensor, visible_layout: Layout, restore_layout: Layout) -> Tensor:
    """Put each clip's ``visible`` rows before its ``restore`` rows; any trailing shape, differentiable."""
    if isinstance(visible_layout, Padded) and isinstance(restore_layout, Padded):
        return torch.cat((visible, restore), dim=1)
    if not (isinstance(visible_layout, Packed) and isinstance(restore_layout, Packed)):
        raise ValueError("interleave: visible and restore must both be Padded or both Packed")
    restore_before = restore_layout.cu_seqlens[:-1][visible_layout.sequence_ids]
    visible_before = visible_layout.cu_seqlens[1:][restore_layout.sequence_ids]
    visible_rows = torch.arange(visible_layout.total, device=visible.device) + restore_before
    restore_rows = torch.arange(restore_layout.total, device=restore.device) + visible_before
    joined = visible.new_zeros((visible_layout.total + restore_layout.total, *visible.shape[1:]))
    return joined.index_copy(0, visible_rows, visible).index_copy(0, restore_rows, restore)


def mae_decoder_input(
    visible: Tensor,
    visible_positions: PatchPositions,
    restore_positions: PatchPositions,
    restore_token: Tensor,
    freq_embedding: Tensor,
) -> Tensor:
    """Add position embeddings to ``visible`` tokens and to the learned ``restore_token`` at every restore position.

    ``visible`` ``[B, Lv, D]`` or ``[Tv, D]``; ``restore_token`` ``[D]``; ``freq_embedding`` ``[8, D]``. Returns tokens
    in :func:`decoder_layout`'s order, ``[B, Lv + Lr, D]`` or ``[Tv + Tr, D]``.
    """
    return _dispatch(visible, visible_positions, restore_positions, restore_token, freq_embedding)


def mae_decoder_input_reference(
    visible: Tensor,
    visible_positions: PatchPositions,
    restore_positions: PatchPositions,
    restore_token: Tensor,
    freq_embedding: Tensor,
) -> Tensor:
    """Compute :func:`mae_decoder_input` in plain PyTorch."""
    width = visible.shape[-1]

    def position_embedding(positions: PatchPositions) -> Tensor:
        time_embedding = sincos_embedding(positions.time, width).to(freq_embedding.dtype)
        return time_embedding + F.embedding(positions.freq, freq_embedding)

    visible = visible + position_embedding(visible_positions)
    restore = restore_token + position_embedding(restore_positions)
    return interleave(visible, restore.to(visible.dtype), visible_positions.layout, restore_positions.layout)


_dispatch = backend.register("mae_decoder_input", reference=mae_decoder_input_reference)
