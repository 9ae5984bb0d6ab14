"""Decoding the clips of a part: those of like length together, never more than a budget in memory."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..audio import SAMPLE_RATE, AudioError, read_audio

CLIPS_AT_ONCE = 64
SECONDS_AT_ONCE = 640.0
"""Of decoded audio: 41 MB."""
MAX_SECONDS = 3_600.0
"""A longer file is refused as too long."""

Wave = npt.NDArray[np.float32]


def decoded_batches(
    paths: Sequence[str | Path], seconds: Sequence[float], failed: Callable[[int, str], None]
) -> Iterator[list[tuple[int, Wave]]]:
    """Numbers and 16 kHz mono waves `[n]` of the clips, shortest first; which are together depends on them alone.

    Args:
        paths: The audio files.
        seconds: About how long each is, for the order.
        failed: Called with the number of a clip that cannot be decoded and the reason.
    """
    batch: list[tuple[int, Wave]] = []
    samples = 0
    for number in sorted(range(len(paths)), key=lambda number: (seconds[number], number)):
        try:
            wave = read_audio(paths[number], max_seconds=MAX_SECONDS)
        except AudioError as error:
            failed(number, error.reason)
            continue
        if batch and (len(batch) == CLIPS_AT_ONCE or samples + len(wave) > SECONDS_AT_ONCE * SAMPLE_RATE):
            yield batch
            batch, samples = [], 0
        batch.append((number, wave))
        samples += len(wave)
    if batch:
        yield batch
