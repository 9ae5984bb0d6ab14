"""Contrastive loss over all pairs of a batch (InfoNCE, both directions, learnable temperature)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend
from .precision import at_least_float32, autocast
from .spec import Case, Inputs, MakeInputs, Spec, Work


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
    with autocast(audio.device, None):
        audio, text = at_least_float32(audio), at_least_float32(text)
        logits = logit_scale.to(audio.dtype).exp() * (audio @ text.T)
        pairs = torch.arange(len(logits), device=logits.device)
        loss = F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)
    return loss / 2 if halved else loss


_dispatch = backend.register("info_nce", reference=info_nce_reference)


def _pairs(count: int, width: int, logit_scale: float, *, halved: bool = False, alike: float = 0.5) -> MakeInputs:
    """Unit embeddings; those of a pair share a part ``alike`` of their direction."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        audio, other = (torch.randn((count, width), generator=generator) for _ in range(2))
        text = alike * audio + (1.0 - alike) * other
        embeddings = {"audio": F.normalize(audio, dim=-1), "text": F.normalize(text, dim=-1)}
        tensors = {name: value.to(device, dtype).requires_grad_() for name, value in embeddings.items()}
        scale_dtype = torch.promote_types(dtype, torch.float32)  # a parameter, never narrower than float32
        scale = torch.tensor(logit_scale, dtype=scale_dtype, device=device).requires_grad_()
        return {**tensors, "logit_scale": scale, "halved": halved}

    return make


def _work(inputs: Inputs, products: int, passes: int) -> Work:
    audio = inputs["audio"]
    return Work(bytes=2 * passes * audio.nbytes, flops=2 * products * audio.shape[0] * audio.numel())


SPEC = Spec(
    name="info_nce",
    op=info_nce,
    reference=info_nce_reference,
    cases=(
        Case("odd", _pairs(37, 24, 2.0)),
        Case("halved, sharp", _pairs(16, 32, 4.6, halved=True)),
        Case("one pair", _pairs(1, 8, 2.0)),
        Case("pairs alike", _pairs(9, 16, 4.6, alike=1.0)),
        Case("stage 2", _pairs(4096, 768, 2.0), paper=True),
        Case("large", _pairs(32_768, 768, 4.6), paper=True),
    ),
    forward=lambda inputs: _work(inputs, 1, 1),
    backward=lambda inputs: _work(inputs, 3, 2),
)
