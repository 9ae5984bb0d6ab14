"""Patches to tokens: linear projection + sin/cos time embedding + learned frequency embedding."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend
from .layout import Patches


def sincos_embedding(time: Tensor, width: int) -> Tensor:
    """Sine/cosine embedding of integer ``time`` ``[...]``: float32 ``[..., width]``, sines first, then cosines.

    angle_j = time * 10000 ** (-2 j / width), j = 0 .. width / 2 - 1 (the authors' ``mae.py``).
    """
    j = torch.arange(width // 2, dtype=torch.float32, device=time.device)
    angle = time[..., None].float() * torch.exp(j * (-2.0 * math.log(10_000.0) / width))
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def patch_embed(patches: Patches, weight: Tensor, bias: Tensor, freq_embedding: Tensor) -> Tensor:
    """Embed ``patches`` as tokens ``[B, L, D]`` or ``[T, D]``: values @ weight.T + bias + sincos(time) + freq row.

    ``weight`` ``[D, 256]``, ``bias`` ``[D]``, ``freq_embedding`` ``[8, D]``.
    """
    return _dispatch(patches.values, patches, weight, bias, freq_embedding)


def patch_embed_reference(
    values: Tensor, patches: Patches, weight: Tensor, bias: Tensor, freq_embedding: Tensor
) -> Tensor:
    """Compute :func:`patch_embed` in plain PyTorch."""
    tokens = F.linear(values, weight, bias)
    positions = patches.positions
    time_embedding = sincos_embedding(positions.time, weight.shape[0]).to(freq_embedding.dtype)
    return tokens + time_embedding + F.embedding(positions.freq, freq_embedding)


_dispatch = backend.register("patch_embed", reference=patch_embed_reference)
