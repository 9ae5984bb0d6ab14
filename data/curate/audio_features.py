"""What clips are compared by: a hash of their samples, a fingerprint, an embedding; each from one decoding."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .audio_batches import Wave, decoded_batches
from .fingerprint import Fingerprint, fingerprints


class Embedder(Protocol):
    """A model that maps clips to unit vectors in which those that sound alike are near."""

    def __call__(self, waves: Sequence[Wave]) -> npt.NDArray[np.float32]:
        """Unit vectors `[N, D]` of 16 kHz mono waves."""
        ...


@dataclass(frozen=True)
class Passes:
    """Which ways of comparing audio are wanted."""

    pcm: bool
    fingerprint: bool
    make_embedder: Callable[[], Embedder] | None
    """Called in each process that works, as `make` of a stage is; None where embeddings are not compared."""

    @property
    def any(self) -> bool:
        """Whether audio has to be decoded at all."""
        return self.pcm or self.fingerprint or self.make_embedder is not None


@dataclass(frozen=True)
class AudioFeatures:
    """Of one clip; what was not wanted is empty."""

    pcm: bytes
    """SHA-256 of its samples; empty for silence, which is no one's."""
    phases: list[Fingerprint]
    embedding: npt.NDArray[np.float32] | None
    """Unit vector `[D]`."""


def audio_features(
    paths: Sequence[str | Path],
    seconds: Sequence[float],
    passes: Passes,
    embedder: Embedder | None,
    failed: Callable[[int, str], None],
    *,
    phases: int,
) -> Iterator[list[tuple[int, AudioFeatures]]]:
    """Numbers and features of the clips that can be decoded, in the batches of `decoded_batches`.

    Args:
        paths: The audio files.
        seconds: About how long each is.
        passes: What is wanted.
        embedder: That of `passes`, made.
        failed: Called with the number of a clip that cannot be decoded and the reason.
        phases: Fingerprints of each clip.
    """
    for batch in decoded_batches(paths, seconds, failed):
        waves = [wave for _, wave in batch]
        embeddings: Any = [None] * len(batch) if embedder is None else embedder(waves)
        yield [
            (
                number,
                AudioFeatures(
                    pcm_digest(wave) if passes.pcm else b"",
                    fingerprints(wave, phases) if passes.fingerprint else [],
                    embedding,
                ),
            )
            for (number, wave), embedding in zip(batch, embeddings, strict=True)
        ]


def pcm_digest(wave: Wave) -> bytes:
    """SHA-256 of a 16 kHz mono wave `[n]` in 16 bits, without digital silence before and behind; of silence `b""`.

    Equal for copies in any lossless format at the same rate and number of bits, padded or not. Another rate or a codec
    changes samples: that is for the fingerprint.
    """
    samples = np.clip(np.rint(wave * np.float32(32_768)), -32_768, 32_767).astype("<i2")
    sounding = np.flatnonzero(samples)
    return hashlib.sha256(samples[sounding[0] : sounding[-1] + 1].tobytes()).digest() if len(sounding) else b""
