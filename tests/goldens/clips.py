"""The twelve clips of the front-end goldens as one ragged batch."""

from functools import lru_cache

import numpy as np
import soundfile
import torch
from torch import Tensor

from .support import HERE, golden

NAMES: list[str] = golden("front_end")["clip_names"].tolist()
TONAL = ("sweep", "short03", "mix10s", "tiny1600")
"""Clips with near-empty mel bands: there TensorFlow's log-mel is the rounding noise of its float32 FFT."""


@lru_cache
def wave(name: str) -> Tensor:
    """Return a clip's int16 samples."""
    samples, rate = soundfile.read(HERE / "clips" / f"{name}.flac", dtype="int16")
    assert rate == 16_000
    return torch.from_numpy(samples)


def batch(names: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the samples of clips end to end and their offsets ``[B + 1]`` on the host."""
    offsets = np.cumsum([0, *(len(wave(name)) for name in names)])
    return torch.cat([wave(name) for name in names]).to(device), torch.from_numpy(offsets)
