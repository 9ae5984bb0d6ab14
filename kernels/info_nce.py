"""Contrastive loss over all pairs of a batch (InfoNCE, both directions, learnable temperature)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend


def info_nce(audio: Tensor, text: Tensor, logit_scale: Tensor, *, halved: bool = False) -> Tensor:
    """Return -(1/N) Σᵢ [log softmaxⱼ(s aᵢ·tⱼ)ᵢ + log softmaxⱼ(s tᵢ·aⱼ)ᵢ], s = exp(logit_scale) (paper, eq. 1).

    ``audio`` and ``text`` ``[N, D]`` unit embeddings, pair by pair; ``logit_scale`` 0-d. ``halved`` gives open_clip's
    mean of the two directions instead of their sum. Computed at least in float32. Raises ValueError where the shapes
    differ.
    """
    if audio.shape != text.shape or audio.dim() != 2:
        raise ValueError(f"info_nce: expected two [N, D] tensors, got {tuple(audio.shape)} and {tuple(text.shape)}")
    return _dispatch(audio, text, logit_scale, halved=halved)


def info_nce_reference(audio: Tensor, text: Tensor, logit_scale: Tensor, *, halved: bool) -> Tensor:
    """Compute :func:`info_nce` through the full ``[N, N]`` logits."""
    with torch.autocast(audio.device.type, enabled=False):
        if audio.element_size() < 4:
            audio, text = audio.float(), text.float()
        logits = logit_scale.to(audio.dtype).exp() * (audio @ text.T)
        pairs = torch.arange(len(logits), device=logits.device)
        loss = F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)
    return loss / 2 if halved else loss


_dispatch = backend.register("info_nce", reference=info_nce_reference)
