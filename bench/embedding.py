"""What batching by length gains: the audio embeddings of ragged clips in batches, against one clip at a time."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from ..engine.inference import Cacophony
from ..kernels.backend import Backend, use_backend
from ..kernels.log_mel import SAMPLE_RATE
from ..models.audio_text import AudioText
from ..models.config import MAX_TEXT_TOKENS, AudioTextConfig
from ..models.layers import init_weights


@dataclass(frozen=True)
class EmbeddingFigures:
    """Median seconds for all clips, how many times as long one by one takes, and how far the numbers are apart."""

    ratio: float
    batched_seconds: float
    one_by_one_seconds: float
    largest_difference: float
    audio_seconds: float


def bench_embedding(
    config: AudioTextConfig,
    clips: int,
    seconds: tuple[float, float],
    batch_size: int,
    rounds: int,
    device: torch.device,
    backend: Backend,
) -> EmbeddingFigures:
    """Time both ways in turns on ``clips`` waves of noise, their lengths uniform between two ``seconds``."""
    network = AudioText(config)
    init_weights(network, 0)
    network.to(device)
    rng = np.random.default_rng(0)
    lengths = rng.uniform(seconds[0] * SAMPLE_RATE, seconds[1] * SAMPLE_RATE, clips).astype(int)
    waves = [rng.normal(0, 0.1, length).astype(np.float32) for length in lengths]
    ways = [Cacophony(network, None, MAX_TEXT_TOKENS, device, batch_size=size) for size in (batch_size, 1)]
    times: list[list[float]] = [[], []]
    found: list[np.ndarray] = [np.zeros(0), np.zeros(0)]
    with use_backend(backend):
        for number in range(rounds + 1):
            for way, model in enumerate(ways):
                started = time.perf_counter()
                found[way] = model.embed_audio(waves)  # on the host when it returns
                if number:  # the first warms up
                    times[way].append(time.perf_counter() - started)
    batched, single = (float(np.median(taken)) for taken in times)
    apart = float(np.abs(found[0] - found[1]).max())
    return EmbeddingFigures(single / batched, batched, single, apart, float(lengths.sum() / SAMPLE_RATE))
