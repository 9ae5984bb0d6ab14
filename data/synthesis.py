"""Waveforms of the synthetic corpus: ten sources, each with a pitch, a motion, a rhythm and a background.

Everything is rendered at 16 kHz, the rate the model hears; a corpus resamples to whatever rate it wants to store.
Arrays run over the samples of one clip, `[n]`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.floating]
_Numbers = Sequence[float] | NDArray[np.float64]

SAMPLE_RATE = 16_000
SOURCES = ("bell", "whistle", "drum", "dog", "engine", "bird", "guitar", "glass", "horn", "water")
PITCHES = ("low", "middle", "high")
MOTIONS = ("steady", "rising", "falling", "wavering")
RHYTHMS = ("single", "slow", "fast")
BACKGROUNDS = ("silence", "wind", "hum", "rain")

_REGISTER = {"low": 0.45, "middle": 1.0, "high": 2.2}
_GLIDE_OCTAVES = 0.4
_WAVER_OCTAVES = 0.3
# Partials stop short of 8 kHz so that resampling filters leave all of them whole.
_TOP_HZ = 7400.0
_SOURCE_RMS = 0.12


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be heard in a clip: one value of SOURCES, PITCHES, MOTIONS, RHYTHMS and BACKGROUNDS."""

    source: str
    pitch: str
    motion: str
    rhythm: str
    background: str


@dataclass(frozen=True, slots=True)
class _Voice:
    """The part a source plays: its fundamental [n] in Hz and its events."""

    frequency: NDArray[np.float64]
    age: Wave
    """[n], seconds since the latest onset; 0 before the first."""
    gate: Wave
    """[n], 1 inside an event and 0 outside, with short ramps."""
    event_s: float


def render_scene(scene: Scene, duration_s: float, rng: np.random.Generator) -> Wave:
    """Render a scene as a mono waveform at 16 kHz.

    Args:
        scene: the attributes to render.
        duration_s: length in seconds, at least 1.
        rng: gives detuning, phases, timing, noise and levels; equal states give equal waveforms.

    Returns:
        float32 `[round(16000 * duration_s)]` with a peak between 0.3 and 0.9.

    Raises:
        KeyError: an attribute of the scene has an unknown value.
    """
    base_hz, source = _SOURCES[scene.source]
    time = np.arange(round(SAMPLE_RATE * duration_s)) / SAMPLE_RATE
    onsets, event_s = _events(scene.rhythm, duration_s, rng)
    detune = rng.uniform(0.97, 1.03)
    frequency = base_hz * _REGISTER[scene.pitch] * detune * np.exp2(_motion(scene.motion, time, onsets, event_s, rng))
    age = (time - _latest(onsets, onsets, len(time))).astype(np.float32)
    gate = np.clip(age / 0.004, 0, 1) * np.clip((event_s - age) / 0.012, 0, 1)
    voice = _Voice(frequency, np.maximum(age, 0), gate, event_s)

    foreground = source(voice, rng) * voice.gate
    foreground *= _SOURCE_RMS / np.sqrt(np.mean(foreground[voice.gate > 0] ** 2))
    background = _BACKGROUNDS[scene.background](time, rng)
    background *= _SOURCE_RMS * 10 ** (-rng.uniform(12, 18) / 20) / np.sqrt(np.mean(background**2))
    if scene.background == "silence":
        background *= 0.003
    mix = foreground + background
    return (mix * (rng.uniform(0.3, 0.9) / np.abs(mix).max())).astype(np.float32)


def _events(rhythm: str, duration_s: float, rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """Onsets in seconds and the length of each event; the ends of the clip are left to the background."""
    first, last_end = rng.uniform(0.08, 0.2), duration_s - rng.uniform(0.15, 0.3)
    if rhythm == "single":
        return np.array([first]), last_end - first
    period, share = {"slow": (rng.uniform(0.58, 0.72), 0.62), "fast": (rng.uniform(0.17, 0.21), 0.66)}[rhythm]
    event_s = share * period
    return np.arange(first, last_end - event_s, period), event_s


def _motion(
    motion: str, time: NDArray[np.float64], onsets: NDArray[np.float64], event_s: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Deviation of the pitch in octaves, [n]; glides span all events, so that repeats climb or sink together."""
    if motion == "wavering":
        return _WAVER_OCTAVES * np.sin(2 * np.pi * (rng.uniform(2.6, 3.4) * time + rng.uniform()))
    progress = np.clip((time - onsets[0]) / (onsets[-1] + event_s - onsets[0]), 0, 1)
    return {"steady": 0.0, "rising": 1.0, "falling": -1.0}[motion] * _GLIDE_OCTAVES * (2 * progress - 1)


def _latest(values: NDArray[np.float64], onsets: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The value of the latest onset (in seconds), held over the samples, [n]; the first value also before it."""
    starts = np.clip(np.ceil(onsets * SAMPLE_RATE), 0, n).astype(np.int64)
    return np.repeat(values, np.diff([0, *starts[1:], n]))


def _cycles(frequency: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Phase in cycles from a frequency in Hz, [n]."""
    return np.cumsum(frequency) / SAMPLE_RATE + rng.uniform()


def _sine(cycles: NDArray[np.float64]) -> Wave:
    # Wrapped before the cast: float32 has no digits left for the fraction of thousands of cycles.
    fraction = (cycles - cycles.astype(np.int32)).astype(np.float32)
    return np.sin(np.float32(2 * np.pi) * fraction)


def _noise(n: int, rng: np.random.Generator) -> Wave:
    return rng.standard_normal(n, dtype=np.float32)


def _shaped(noise: Wave, gain: Callable[[Wave], Wave]) -> Wave:
    """Filter noise [n] by a gain over frequency in Hz."""
    # A clip's length may be a large prime, which makes an FFT ten times slower.
    n = -(-len(noise) // 2000) * 2000
    hz = np.fft.rfftfreq(n, 1 / SAMPLE_RATE).astype(np.float32)
    return np.fft.irfft(np.fft.rfft(noise, n) * gain(hz), n)[: len(noise)]


def _partials(voice: _Voice, ratios: _Numbers, gains: _Numbers, decays: _Numbers, rng: np.random.Generator) -> Wave:
    """A sum of partials that decay by exp(-decay) over an event, without those that would pass the top."""
    cycles = _cycles(voice.frequency, rng)
    relative_age = voice.age / np.float32(voice.event_s)
    highest = voice.frequency.max()
    total = np.zeros(len(cycles), np.float32)
    for ratio, gain, decay in zip(ratios, gains, decays, strict=True):
        if ratio * highest < _TOP_HZ:
            envelope = np.exp(np.float32(-decay) * relative_age) if decay else 1.0
            total += np.float32(gain) * _sine(ratio * cycles + rng.uniform()) * envelope
    return total


def _breath(voice: _Voice, low_hz: float, high_hz: float, rng: np.random.Generator) -> Wave:
    """Noise of one band, of unit RMS: what air, wood or metal adds to the tone, whatever its pitch."""
    noise = _shaped(_noise(len(voice.age), rng), lambda hz: ((hz > low_hz) & (hz < high_hz)).astype(np.float32))
    return noise / np.sqrt(np.mean(noise**2))


def _bell(voice: _Voice, rng: np.random.Generator) -> Wave:
    ring = _partials(voice, (1, 2, 2.76, 4.07, 5.4), (1, 0.7, 0.7, 0.5, 0.4), (3, 3, 3.5, 4.5, 6), rng)
    return ring + 0.4 * _breath(voice, 4000, 5500, rng)


def _whistle(voice: _Voice, rng: np.random.Generator) -> Wave:
    swell = np.clip(voice.age / (0.2 * voice.event_s), 0, 1)
    return (_partials(voice, (1,), (1,), (0,), rng) + 0.3 * _breath(voice, 2200, 3800, rng)) * swell


def _drum(voice: _Voice, rng: np.random.Generator) -> Wave:
    skin = _partials(voice, (1, 1.59, 2.14, 2.65), (1, 0.6, 0.4, 0.3), (3.5, 5, 6, 7), rng)
    stroke = 0.8 * _noise(len(skin), rng) * np.exp(-voice.age / np.float32(0.02))
    return skin + stroke + 0.6 * _breath(voice, 40, 200, rng)


def _dog(voice: _Voice, rng: np.random.Generator) -> Wave:
    arch = np.sin(np.pi * np.clip(voice.age / voice.event_s, 0, 1))
    cycles = _cycles(voice.frequency * np.exp2(0.25 * arch - 0.15), rng)
    throat = _sine(cycles) + 0.6 * _sine(2 * cycles + 0.2)
    growl = _shaped(_noise(len(arch), rng), lambda hz: 1 / (1 + (hz / 2500) ** 4))
    return np.tanh(3 * throat + 1.5 * growl) * np.clip(3 * arch, 0, 1)


def _engine(voice: _Voice, rng: np.random.Generator) -> Wave:
    cycles = _cycles(voice.frequency, rng)
    pulses = np.exp(25 * (_sine(cycles) - 1)) * (1 + 0.4 * _sine(0.5 * cycles))
    return pulses * (1 + 0.3 * _noise(len(pulses), rng)) - np.float32(pulses.mean())


def _bird(voice: _Voice, rng: np.random.Generator) -> Wave:
    trill = (rng.uniform(13, 16) * voice.age) % 1
    cycles = _cycles(voice.frequency * np.exp2(0.4 * (0.5 - trill)), rng)
    return _sine(cycles) * np.sin(np.pi * trill)


def _guitar(voice: _Voice, rng: np.random.Generator) -> Wave:
    harmonics = np.arange(1.0, 11)
    string = _partials(voice, harmonics, 1 / harmonics**0.8, 2 + 0.7 * harmonics, rng)
    return string + 0.4 * _breath(voice, 900, 1700, rng)


def _glass(voice: _Voice, rng: np.random.Generator) -> Wave:
    rim = _partials(voice, (1, 1.47, 2.09, 2.56), (1, 0.8, 0.7, 0.5), (4, 4.5, 5, 5.5), rng)
    tick = _shaped(_noise(len(rim), rng), lambda hz: (hz > 3000).astype(np.float32))
    return rim + 1.5 * tick * np.exp(-voice.age / np.float32(0.015)) + 0.4 * _breath(voice, 6000, 8000, rng)


def _horn(voice: _Voice, rng: np.random.Generator) -> Wave:
    harmonics = np.arange(1.0, 9)
    return _partials(voice, harmonics, 1 / harmonics**0.3, np.zeros(8), rng) * np.clip(voice.age / 0.04, 0, 1)


def _water(voice: _Voice, rng: np.random.Generator) -> Wave:
    n = len(voice.age)
    bubbles = np.cumsum(rng.uniform(0.04, 0.09, n * 25 // SAMPLE_RATE + 2)) - 0.1
    age = np.arange(n) / SAMPLE_RATE - _latest(bubbles, bubbles, n)
    size = _latest(rng.uniform(-0.25, 0.25, len(bubbles)), bubbles, n)
    tone = _sine(_cycles(np.minimum(voice.frequency * np.exp2(size + 9 * age), _TOP_HZ), rng))
    age = np.maximum(age, 0).astype(np.float32)
    splash = 0.5 * _noise(n, rng) * np.exp(-age / np.float32(0.006))
    return tone * np.exp(-35 * age) * np.clip(age / 0.003, 0, 1) + splash


def _silence(time: NDArray[np.float64], rng: np.random.Generator) -> Wave:
    return _noise(len(time), rng)


def _wind(time: NDArray[np.float64], rng: np.random.Generator) -> Wave:
    gusts = 1 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.3, 0.7) * time + rng.uniform()))
    return _shaped(_noise(len(time), rng), lambda hz: 1 / (1 + (hz / 500) ** 2)) * gusts.astype(np.float32)


def _hum(time: NDArray[np.float64], rng: np.random.Generator) -> Wave:
    cycles = rng.uniform(97, 123) * time
    partials = ((1, 1.0), (2, 0.9), (3, 0.7), (4, 0.5), (6, 0.4))
    return np.sum([gain * _sine(ratio * cycles + rng.uniform()) for ratio, gain in partials], axis=0)


def _rain(time: NDArray[np.float64], rng: np.random.Generator) -> Wave:
    noise = _noise(len(time), rng)
    drops = np.where(rng.random(len(time), dtype=np.float32) < 300 / SAMPLE_RATE, noise, 0.03 * noise)
    return _shaped(drops, lambda hz: hz / (hz + 3000))


_SOURCES: dict[str, tuple[float, Callable[[_Voice, np.random.Generator], Wave]]] = {
    "bell": (440.0, _bell),
    "whistle": (1300.0, _whistle),
    "drum": (240.0, _drum),
    "dog": (330.0, _dog),
    "engine": (160.0, _engine),
    "bird": (2100.0, _bird),
    "guitar": (240.0, _guitar),
    "glass": (1500.0, _glass),
    "horn": (260.0, _horn),
    "water": (600.0, _water),
}
_BACKGROUNDS: dict[str, Callable[[NDArray[np.float64], np.random.Generator], Wave]] = {
    "silence": _silence,
    "wind": _wind,
    "hum": _hum,
    "rain": _rain,
}
