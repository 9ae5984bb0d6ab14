"""Whole clips as the networks take them outside training: no crop, no draw that depends on other clips."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.choose_patches import keep_at_most
from ..kernels.layout import Patches
from ..kernels.log_mel import SAMPLE_RATE, num_patches
from ..kernels.log_mel_patches import kept_log_mel

# Decoded MP3 reaches 1.5 or so, integers of 8 bits 128.
_MAX_PEAK = 16.0


def mono_wave(audio: object) -> Tensor:
    """Return samples, floats in [-1, 1] or int16, which is scaled, as a float32 wave ``[n]``.

    Raises InputError for anything else: no array, several channels, other integers, NaN, infinity, or floats far beyond
    1, as of integers that were not scaled.
    """
    try:
        wave = torch.as_tensor(audio)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{type(audio).__name__}: no samples ({error}); expected an array of {SAMPLE_RATE} Hz mono samples"
        ) from None
    if wave.dim() != 1:
        raise InputError(f"a wave has shape {tuple(wave.shape)}; expected one dimension, {SAMPLE_RATE} Hz mono samples")
    if wave.dtype != torch.int16 and not wave.is_floating_point():
        kind = str(wave.dtype).removeprefix("torch.")
        raise InputError(f"a wave is {kind}; expected floats in [-1, 1] or int16: convert it first")
    wave = wave.float() / 32768.0 if wave.dtype == torch.int16 else wave.float()
    if not wave.isfinite().all():
        raise InputError("a wave has NaN or infinite samples; expected floats in [-1, 1] or int16: repair it")
    if len(wave) and wave.abs().max() > _MAX_PEAK:
        raise InputError(
            f"a wave of floats has samples up to {wave.abs().max():.4g}; expected [-1, 1] or int16: scale it, where it "
            "was integers by 1/32768 (16 bits)"
        )
    return wave


def clip_patches(waves: Sequence[Tensor], max_patches: int, device: torch.device | str = "cpu") -> Patches:
    """Return padded patches of 16 kHz mono ``waves``; of a clip with more than ``max_patches`` a fixed subset."""
    offsets = torch.tensor([0, *(len(wave) for wave in waves)]).cumsum(0)
    keep = keep_at_most(num_patches(offsets.diff()), max_patches)
    # One key for all clips: a clip's patches must not depend on which others it is seen with.
    same_key = torch.zeros(len(waves), dtype=torch.int64)
    return kept_log_mel(torch.cat(list(waves)).to(device), offsets, keep, same_key, seed=0, step=0)
