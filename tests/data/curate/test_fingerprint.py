"""Fingerprints: what outlives a copy, what does not, and that the index misses nothing that a full search finds."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import soxr
from cacophony.data.curate.audio_features import pcm_digest
from cacophony.data.curate.exclude import Thresholds
from cacophony.data.curate.fingerprint import Fingerprint, fingerprint, fingerprints, similarity
from cacophony.data.curate.fingerprint_index import FingerprintIndex
from cacophony.data.synthesis import BACKGROUNDS, MOTIONS, PITCHES, RHYTHMS, SOURCES, Scene, render_scene

RATE = 16_000
LEAST = Thresholds().similarity
MOST_FALSE = 0.25
"""No two unlike clips may be this similar: the threshold is far above."""

COPIES: dict[str, dict[str, Any]] = {
    "quieter": {"gain": 0.05},
    "44.1 kHz": {"rate": 44_100, "format": "FLAC"},
    "8 kHz": {"rate": 8_000},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "ogg, lowest quality": {"format": "OGG", "subtype": "VORBIS", "compression_level": 1.0},
    "mp3, lowest quality": {"rate": 44_100, "format": "MP3", "subtype": "MPEG_LAYER_III", "compression_level": 0.99},
}


def copied(
    wave: np.ndarray,
    *,
    gain: float = 1.0,
    rate: int = RATE,
    format: str = "WAV",
    subtype: str = "PCM_16",
    compression_level: float | None = None,
) -> np.ndarray:
    """`wave` stored in some way and read again."""
    file = io.BytesIO()
    options: dict[str, Any] = {} if compression_level is None else {"compression_level": compression_level}
    sf.write(file, soxr.resample(gain * wave, RATE, rate), rate, format=format, subtype=subtype, **options)
    file.seek(0)
    stored, _ = sf.read(file, dtype="float32")
    return soxr.resample(stored, rate, RATE)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Bells, dogs, engines and noise, one to three seconds each."""
    rng = np.random.default_rng(0)
    waves = []
    for n in range(20):
        scene = Scene(SOURCES[n % 10], PITCHES[n % 3], MOTIONS[n % 4], RHYTHMS[n // 2 % 3], BACKGROUNDS[n // 3 % 4])
        waves.append(render_scene(scene, 1.2 + 0.1 * n, rng))
    return waves + [0.1 * rng.standard_normal(RATE + 3_000 * n).astype(np.float32) for n in range(4)]


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_found_and_is_far_from_chance(how: str, clips: list[np.ndarray]) -> None:
    index = FingerprintIndex([fingerprint(wave) for wave in clips])

    for number, wave in enumerate(clips):
        found = index.nearest(fingerprints(copied(wave, **COPIES[how]), 4))

        assert found is not None
        assert found.clip == number
        assert found.similarity >= LEAST


def test_a_part_of_a_clip_and_a_clip_in_another_are_found(clips: list[np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    for wave in clips[3::5]:
        part = wave[1_237 : 1_237 + RATE]
        around = np.concatenate([0.02 * rng.standard_normal(7_001), wave, 0.02 * rng.standard_normal(30_000)])
        for searched in (part, around.astype(np.float32)):
            found = FingerprintIndex([fingerprint(wave)]).nearest(fingerprints(searched, 4))

            assert found is not None
            assert found.similarity > 0.8


def test_unlike_clips_are_not_similar_at_any_offset(clips: list[np.ndarray]) -> None:
    prints = [fingerprint(wave) for wave in clips]
    worst = max(
        similarity(a, b, offset) for n, a in enumerate(prints) for b in prints[:n] for offset in range(-40, 41, 3)
    )

    assert worst < MOST_FALSE < LEAST
    for n, wave in enumerate(clips):
        found = FingerprintIndex(prints[:n] + prints[n + 1 :]).nearest(fingerprints(wave, 4))
        assert found is None or found.similarity < MOST_FALSE


def test_the_index_finds_what_comparing_with_every_clip_at_every_offset_finds(clips: list[np.ndarray]) -> None:
    prints = [fingerprint(wave) for wave in clips]
    index = FingerprintIndex(prints)
    for wave in clips[::4]:
        searched = fingerprint(copied(wave[700:], format="OGG", subtype="VORBIS"))
        best = max(
            (similarity(searched, clip, offset), -number)
            for number, clip in enumerate(prints)
            for offset in range(-len(searched.signs), len(clip.signs))
        )

        found = index.nearest([searched])
        assert found is not None
        assert (found.similarity, -found.clip) == best


def test_silence_and_steady_tones_match_nothing() -> None:
    time = np.arange(2 * RATE) / RATE
    silence, tone = np.zeros(2 * RATE, np.float32), (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    nothing, click = np.zeros(0, np.float32), np.ones(3, np.float32)
    plain = [fingerprint(wave) for wave in (silence, tone, nothing, click)]

    assert all(clip.plain for clip in plain)
    assert FingerprintIndex(plain).nearest(fingerprints(silence, 4)) is None
    assert FingerprintIndex(plain).nearest(fingerprints(tone, 4)) is None
    assert FingerprintIndex([]).nearest(fingerprints(tone, 4)) is None


def test_similarity_of_trits_counts_what_only_one_has() -> None:
    rng = np.random.default_rng(0)
    heard = rng.integers(0, 2**32, 100, dtype=np.uint32)
    signs = rng.integers(0, 2**32, 100, dtype=np.uint32) & heard
    a = Fingerprint(signs, heard)
    turned = Fingerprint(~signs & heard, heard)
    half = Fingerprint(signs & np.uint32(0xFFFF), heard & np.uint32(0xFFFF))

    assert similarity(a, a, 0) == 1.0
    assert similarity(a, turned, 0) == 0.0  # not below
    assert similarity(a, half, 0) == pytest.approx(np.sqrt(half.trits / a.trits))
    assert similarity(a, a, 1) == similarity(a, a, 100) == similarity(a, a, -100) == 0.0


def test_the_hash_is_that_of_the_samples_alone(clips: list[np.ndarray]) -> None:
    wave = copied(clips[0])
    padded = np.concatenate([np.zeros(500, np.float32), wave, np.zeros(9, np.float32)])
    other = wave.copy()
    other[len(other) // 2] += 1 / 32_768

    assert pcm_digest(wave) == pcm_digest(copied(wave, format="FLAC")) == pcm_digest(padded)
    assert pcm_digest(other) != pcm_digest(wave)
    assert pcm_digest(np.zeros(9, np.float32)) == pcm_digest(np.zeros(0, np.float32)) == b""
