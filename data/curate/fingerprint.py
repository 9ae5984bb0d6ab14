"""Fingerprints of audio that outlive another format, rate, level or a lossy codec.

The idea is that of J. Haitsma and T. Kalker, "A highly robust audio fingerprinting system" (ISMIR 2002): the sign of
the difference, between neighbouring bands and between moments, of a band's energy. Theirs are bits that are compared
by their error rate. Many sounds are silent or steady for most of the time, where a sign means nothing; so here a
difference of less than `CHANGE_DB` is no evidence (a trit: -1, 0 or 1), and two fingerprints are compared by the
cosine of the angle between them, which counts what only one of them has against a match.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..audio import SAMPLE_RATE

BANDS = 33
LOWEST_HZ, HIGHEST_HZ = 150.0, 6_000.0
WINDOW = 2_048
"""Samples of a spectrum: 128 ms."""
HOP = 512
"""Samples from one frame to the next: 32 ms."""
PHASES = 4
"""A searched clip has a fingerprint for each of so many starts within a hop: no copy is off by more than 4 ms."""
LAG = 2
"""Frames between the moments that are compared: half a window."""
CHANGE_DB = 2.0
RANGE_DB = 50.0
"""What is further below the loudest band of the second before or after is not heard: silence has no differences."""
CLIP_RANGE_DB = 80.0
"""What is further below the loudest band of the whole clip is not heard."""
MIN_FRAMES = 24
"""Frames that two clips must share, unless one is shorter."""
MIN_SHARE = 0.8
"""Of a clip with fewer frames, so much must be shared."""
MIN_DEVIATIONS = 6.0
"""A match is so many standard deviations from chance.

The similarity of unrelated noise at n trits has the standard deviation 1 / sqrt(n).
"""

Words = npt.NDArray[np.uint32]

_FRAMES_AT_ONCE = 4_096
_QUIETEST = 1e-9  # power of a band; full scale is about 1e6, the noise of 16 bits about 1e-4


@dataclass(frozen=True)
class Fingerprint:
    """The trits of a clip: a frame is a word, a band is a bit."""

    signs: Words
    """`[frames]`; 1 where the difference rises."""
    heard: Words
    """`[frames]`; 1 where there is a difference. `signs` is 0 elsewhere."""

    @property
    def trits(self) -> int:
        """How many differences there are."""
        return int(np.bitwise_count(self.heard).sum())

    @property
    def plain(self) -> bool:
        """Whether too little happens in the clip for any match to be beyond chance."""
        return self.trits < MIN_DEVIATIONS**2


def fingerprint(wave: npt.NDArray[np.float32], phase: int = 0) -> Fingerprint:
    """The fingerprint of a 16 kHz mono wave `[n]`, from sample `phase * HOP / PHASES` on."""
    return fingerprints(wave)[0] if phase == 0 else fingerprints(wave, PHASES)[phase]


def fingerprints(wave: npt.NDArray[np.float32], phases: int = 1) -> list[Fingerprint]:
    """Fingerprints of a 16 kHz mono wave `[n]` for the first `phases` starts within a hop."""
    step = HOP // PHASES
    powers = [_band_powers(wave[phase * step :]) for phase in range(phases)]
    return [_trits(10 * np.log10(power + _floor(power))) for power in powers]


def similarity(a: Fingerprint, b: Fingerprint, offset: int) -> float:
    """Cosine in [-1, 1] of the trits that `a` and `b` share when `a` begins `offset` frames into `b`.

    0 where they share too few frames or where chance would do the same.
    """
    begin, end = max(0, offset), min(len(b.signs), offset + len(a.signs))
    if end - begin < min(MIN_FRAMES, MIN_SHARE * min(len(a.signs), len(b.signs))) or end <= begin:
        return 0.0
    in_a, in_b = slice(begin - offset, end - offset), slice(begin, end)
    both = a.heard[in_a] & b.heard[in_b]
    different = int(np.bitwise_count((a.signs[in_a] ^ b.signs[in_b]) & both).sum())
    agreement = int(np.bitwise_count(both).sum()) - 2 * different
    trits = np.sqrt(float(np.bitwise_count(a.heard[in_a]).sum()) * float(np.bitwise_count(b.heard[in_b]).sum()))
    return agreement / trits if agreement > 0 and agreement >= MIN_DEVIATIONS * np.sqrt(trits) else 0.0


def _band_powers(wave: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Power `[frames, BANDS]` of windows that lie wholly in the wave; one of a wave that is shorter than a window."""
    wave = np.pad(wave, (0, max(0, WINDOW - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
    parts = []
    for first in range(0, len(frames), _FRAMES_AT_ONCE):
        spectra = np.fft.rfft(frames[first : first + _FRAMES_AT_ONCE] * _HANN, axis=1)
        parts.append((spectra.real**2 + spectra.imag**2).astype(np.float32) @ _WEIGHTS)
    return np.concatenate(parts)


def _floor(power: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The power `[frames, 1]` below which nothing is heard; above 0 also where all is silent."""
    loudest = power.max(axis=1)
    around = np.pad(loudest, SAMPLE_RATE // HOP)
    near = np.lib.stride_tricks.sliding_window_view(around, 2 * (SAMPLE_RATE // HOP) + 1).max(axis=1)
    floor = np.maximum(near * 10 ** (-RANGE_DB / 10), loudest.max() * 10 ** (-CLIP_RANGE_DB / 10))
    return np.maximum(floor, _QUIETEST)[:, None].astype(np.float32)


def _trits(level: npt.NDArray[np.floating[Any]]) -> Fingerprint:
    slope = level[:, :-1] - level[:, 1:]
    change = slope[LAG:] - slope[:-LAG]
    heard = np.abs(change) > CHANGE_DB
    return Fingerprint(_words((change > 0) & heard), _words(heard))


def _words(bits: npt.NDArray[np.bool_]) -> Words:
    """Pack `[frames, 32]` into `[frames]`, band 0 lowest."""
    return np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32).reshape(len(bits))


def _weights() -> npt.NDArray[np.float32]:
    """The share `[WINDOW / 2 + 1, BANDS]` of each bin of the spectrum in each band; the bands are even in pitch."""
    edges = np.geomspace(LOWEST_HZ, HIGHEST_HZ, BANDS + 1)
    width = SAMPLE_RATE / WINDOW
    bins = np.arange(WINDOW // 2 + 1)[:, None] * width
    shared = np.minimum(bins + width / 2, edges[1:]) - np.maximum(bins - width / 2, edges[:-1])
    return (shared / width).clip(0, 1).astype(np.float32)


_HANN = np.hanning(WINDOW).astype(np.float32)
_WEIGHTS = _weights()
