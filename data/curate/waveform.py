"""Whether two clips whose fingerprints are alike are the same recording: by their samples.

Two rings of one bell have much the same fingerprint; their waves have nothing in common. Lossy codecs keep the wave.
"""

import numpy as np
import numpy.typing as npt

from ..audio import SAMPLE_RATE
from .audio_batches import Wave
from .fingerprint import HOP, PHASES, WINDOW

LOWEST_HZ, HIGHEST_HZ = 150.0, 4_000.0
"""What is compared: rumble is alike everywhere, and codecs save above."""
MAX_SECONDS = 10.0
"""Of what the clips share, so much is compared: in more, clocks that differ a little drift apart."""

_MAX_LAG = HOP


def waveform_correlation(searched: Wave, clip: Wave, phase: int, offset: int) -> float:
    """Largest absolute correlation in [0, 1] of two 16 kHz mono waves near an alignment, in a band.

    Frame 0 of `searched` at `phase` lies at frame `offset` of `clip`, as `FingerprintIndex.nearest` says; lags of up to
    a frame around it are tried. The sign is of no account. 0 where one of them is silent there.
    """
    start_a, start_b = phase * (HOP // PHASES) + max(0, -offset) * HOP, max(0, offset) * HOP
    length = min(len(searched) - start_a, len(clip) - start_b, round(MAX_SECONDS * SAMPLE_RATE))
    if length <= WINDOW:
        return 0.0
    size = 1 << (length + _MAX_LAG).bit_length()
    a = _band(searched[start_a : start_a + length], size)
    b = _band(clip[start_b : start_b + length], size)
    products = np.fft.irfft(a.conj() * b, size)
    lags = np.arange(-_MAX_LAG, _MAX_LAG + 1)
    energy_a, energy_b = (_energies(spectrum, size, length) for spectrum in (a, b))
    first, last = np.maximum(0, -lags), length - np.maximum(0, lags)
    shared = (energy_a[last] - energy_a[first]) * (energy_b[last + lags] - energy_b[first + lags])
    total = energy_a[-1] * energy_b[-1]
    if total <= 0.0:
        return 0.0
    return float((np.abs(products[lags]) / np.sqrt(np.maximum(shared, 1e-6 * total))).max().clip(0, 1))


def _band(wave: Wave, size: int) -> npt.NDArray[np.complex128]:
    spectrum = np.fft.rfft(wave.astype(np.float64), size)
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum[(hertz < LOWEST_HZ) | (hertz > HIGHEST_HZ)] = 0
    return spectrum


def _energies(spectrum: npt.NDArray[np.complex128], size: int, length: int) -> npt.NDArray[np.float64]:
    """Energy `[length + 1]` of the first samples of a wave."""
    return np.concatenate([[0.0], np.cumsum(np.fft.irfft(spectrum, size)[:length] ** 2)])
