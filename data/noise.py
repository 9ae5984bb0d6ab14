"""A batch of noise: clips and captions of real lengths without meaning, to time and to compare implementations."""

import numpy as np

from .batch import AudioTextBatch, collate

CLIP_SECONDS = (1.0, 10.24)
CAPTION_TOKENS = (6, 30)  # uniform: mean 18, as real captions have; the model takes up to 77
_SAMPLE_RATE = 16_000  # Hz
_BOS, _EOS, _FIRST_WORD = 0, 2, 5  # RoBERTa's ids


def noise_batch(
    clips: int,
    vocab_size: int,
    seed: int = 0,
    max_tokens: int = CAPTION_TOKENS[1],
    *,
    seconds: tuple[float, float] = CLIP_SECONDS,
    tokens: tuple[int, int] = CAPTION_TOKENS,
) -> AudioTextBatch:
    """Clips of white noise and captions of random tokens, lengths uniform in ``seconds`` and ``tokens``.

    No caption is longer than ``max_tokens``.
    """
    rng = np.random.default_rng(seed)
    samples = (rng.uniform(*seconds, clips) * _SAMPLE_RATE).astype(int)
    waves = [(3000 * rng.standard_normal(n)).astype(np.int16) for n in samples]
    lengths = rng.integers(tokens[0], tokens[1] + 1, clips).clip(max=max_tokens)
    captions = [np.array([_BOS, *rng.integers(_FIRST_WORD, vocab_size, n - 2), _EOS], np.int32) for n in lengths]
    return collate(waves, np.arange(clips), captions)
