"""Decoding: what any file becomes at 16 kHz mono, and which files are refused and why."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from cacophony.data import audio
from cacophony.data.audio import (
    SAMPLE_RATE,
    TRUNCATED,
    AudioError,
    check_seconds,
    decode_flac_int16,
    encode_flac_int16,
    probe_seconds,
    read_audio,
)
from hypothesis import given, settings
from hypothesis import strategies as st

FORMATS = {
    "a.wav": {},
    "float.WAV": {"subtype": "FLOAT", "format": "WAV"},
    "long.wav": {"format": "RF64"},
    "a.flac": {},
    "a.ogg": {},
    "a.oga": {"format": "OGG", "subtype": "VORBIS"},
    "a.opus": {"format": "OGG", "subtype": "OPUS"},
    "a.mp3": {},
    "a.aiff": {},
    "a.aif": {"format": "AIFF"},
}


def tone(hertz: float, rate: int, seconds: float, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def write(path: Path, wave: np.ndarray, rate: int = 48_000) -> Path:
    sf.write(path, wave, rate, **FORMATS.get(path.name, {}))
    return path


def reason(path: Path, **limits: float) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(path, **limits)
    assert str(path) in str(caught.value)
    assert str(path) not in caught.value.reason
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_sound_at_16_khz_mono(tmp_path: Path, name: str) -> None:
    wave = read_audio(write(tmp_path / name, np.stack([tone(440, 48_000, 1.5), tone(440, 48_000, 1.5, 0.3)], 1)))
    assert wave.dtype == np.float32
    assert len(wave) == 24_000
    middle = slice(4_000, 20_000)
    assert np.abs(wave[middle] - tone(440, SAMPLE_RATE, 1.5, 0.4)[middle]).max() < 0.03


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_rate_and_channel_count_keeps_the_duration(tmp_path: Path, rate: int, channels: int) -> None:
    path = write(tmp_path / "a.wav", np.repeat(tone(300, rate, 1.1)[:, None], channels, 1), rate)
    wave = read_audio(path)
    assert len(wave) == round(round(rate * 1.1) * SAMPLE_RATE / rate)
    assert np.abs(wave[1_000:-1_000] - tone(300, SAMPLE_RATE, 1.1)[1_000 : len(wave) - 1_000]).max() < 2e-3
    assert probe_seconds(path) == pytest.approx(1.1, abs=1e-4)


def test_a_tone_above_the_new_nyquist_vanishes(tmp_path: Path) -> None:
    wave = read_audio(write(tmp_path / "float.WAV", tone(12_000, 48_000, 1.0)))
    assert np.abs(wave[1_000:-1_000]).max() < 1e-4


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = tone(440, SAMPLE_RATE, 1.0)
    opposite = write(tmp_path / "float.WAV", np.stack([left, -left], 1), SAMPLE_RATE)
    assert not read_audio(opposite).any()


@pytest.mark.parametrize("name", ["a.wav", "long.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.aiff"])
@pytest.mark.parametrize("kept", [0.9, 0.7])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, kept: float) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 96_000).astype(np.float32)
    path = write(tmp_path / name, noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert reason(path) in (audio.TRUNCATED, audio.NOT_AUDIO)
    assert reason(path).startswith("truncated") or name == "a.opus"


def test_a_truncated_wav_is_refused_also_where_its_chunks_fill_libsndfile_s_log(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    wave = np.random.default_rng(0).integers(-9_999, 9_999, 32_000).astype("<i2").tobytes()
    marks = struct.pack("<2I", 4 + 24 * 200, 200) + b"".join(
        struct.pack("<2I4s3I", n, n, b"data", 0, 0, n) for n in range(200)
    )
    notes = b"".join(b"ICMT" + struct.pack("<I", 60) + b"%060d" % n for n in range(100))
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    chunks = b"WAVE" + form + b"cue " + marks + b"LIST" + struct.pack("<I", 4 + len(notes)) + b"INFO" + notes
    body = chunks + b"odd " + struct.pack("<I", 3) + b"odd\0" + b"data" + struct.pack("<I", len(wave)) + wave
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    path.write_bytes(data)
    assert len(read_audio(path)) == 32_000
    path.write_bytes(data[:-2])
    assert len(sf.read(path)[0]) == 31_999  # libsndfile shortens it in silence
    with pytest.raises(AudioError, match=TRUNCATED):
        read_audio(path)


def test_integers_in_a_file_of_floats_are_refused(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, 20_000)
    for peak, refused in ((1.5, False), (128, True), (32_768, True)):
        sf.write(tmp_path / "a.wav", peak * wave, 16_000, subtype="FLOAT")
        if refused:
            with pytest.raises(AudioError, match="beyond full scale"):
                read_audio(tmp_path / "a.wav")
        else:
            assert np.abs(read_audio(tmp_path / "a.wav")).max() > 1.4


@pytest.mark.parametrize("declared", [0, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_streamed_wav_header_is_no_truncation(tmp_path: Path, declared: int) -> None:
    path = write(tmp_path / "a.wav", tone(440, SAMPLE_RATE, 1.0), SAMPLE_RATE)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", declared)
    data[4:8] = struct.pack("<I", declared or 8)
    path.write_bytes(data)
    assert len(read_audio(path)) == SAMPLE_RATE


def test_flac_of_undeclared_length_is_read_to_its_end(tmp_path: Path) -> None:
    data = bytearray(encode_flac_int16(tone(440, SAMPLE_RATE, 1.5)))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path = tmp_path / "streamed.flac"
    path.write_bytes(data)
    assert probe_seconds(path) == math.inf
    assert len(read_audio(path)) == 24_000
    assert reason(path, max_seconds=1.0) == audio.TOO_LONG


def test_an_ogg_stream_without_its_end_page_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", tone(440, 48_000, 2.0))
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"OggS")])
    assert reason(path) == audio.TRUNCATED


def test_defects_have_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "page.mp3").write_text("<html>404</html>" * 40)
    write(tmp_path / "a.wav", np.zeros(0, np.float32))
    poisoned = tone(440, SAMPLE_RATE, 1.0)
    poisoned[7_000] = np.nan
    write(tmp_path / "float.WAV", poisoned, SAMPLE_RATE)
    assert reason(tmp_path / "empty.wav") == audio.EMPTY_FILE
    assert reason(tmp_path / "page.mp3") == audio.NOT_AUDIO
    assert reason(tmp_path / "a.wav") == audio.NO_SAMPLES
    assert reason(tmp_path / "float.WAV") == audio.NOT_FINITE
    assert reason(tmp_path / "nowhere.wav") == audio.NOT_OPENED
    assert reason(tmp_path) == audio.NOT_AUDIO


def test_infinite_samples_are_refused_also_when_the_mean_overflows(tmp_path: Path) -> None:
    loud = np.full((2_000, 4), 3e38, np.float32)
    assert reason(write(tmp_path / "float.WAV", loud)) == audio.NOT_FINITE


def test_length_limits_include_their_ends_and_come_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.wav", tone(440, SAMPLE_RATE, 1.0), SAMPLE_RATE)
    assert len(read_audio(path, min_seconds=1.0, max_seconds=1.0)) == SAMPLE_RATE
    monkeypatch.setattr(audio, "_decode", lambda *_: pytest.fail("decoded"))
    assert reason(path, max_seconds=0.999) == audio.TOO_LONG
    assert reason(path, min_seconds=1.001) == audio.TOO_SHORT
    with pytest.raises(AudioError, match="too long"):
        check_seconds(path, 301.0, 1.0, 300.0)


def test_a_header_with_many_channels_is_decoded_in_small_blocks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.repeat(tone(440, SAMPLE_RATE, 0.1)[:, None], 200, 1), SAMPLE_RATE)
    assert np.abs(read_audio(path) - tone(440, SAMPLE_RATE, 0.1)).max() < 1e-4


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-32_768, 32_767), min_size=1, max_size=6_000), st.data())
def test_flac_members_are_exact_and_seekable(samples: list[int], data: st.DataObject) -> None:
    wave = np.array(samples, np.int16)
    member = encode_flac_int16(wave)
    start = data.draw(st.integers(0, len(wave)))
    frames = data.draw(st.integers(0, len(wave) - start))
    assert np.array_equal(decode_flac_int16(member), wave)
    assert np.array_equal(decode_flac_int16(member, start, frames), wave[start : start + frames])
    assert np.array_equal(decode_flac_int16(encode_flac_int16(wave / np.float32(32_768))), wave)


def test_a_crop_of_a_long_clip_is_all_that_is_decoded() -> None:
    """What lies more than a few FLAC blocks away may be anything: here, noise that is no FLAC."""
    rng = np.random.default_rng(0)
    wave = rng.integers(-99, 99, 60 * 16_000).astype(np.int16)
    member = bytearray(encode_flac_int16(wave))
    start, frames = 30 * 16_000, 16_000
    for first, last in ((0.6, 1.0), (0.05, 0.2)):
        at, end = round(first * len(member)), round(last * len(member))
        member[at:end] = rng.integers(0, 128, end - at, np.uint8).tobytes()
        assert np.array_equal(decode_flac_int16(bytes(member), start, frames), wave[start : start + frames])


def test_loud_waves_are_clipped() -> None:
    assert decode_flac_int16(encode_flac_int16(np.array([2.0, -2.0, 1.0], np.float32))).tolist() == [
        32_767,
        -32_768,
        32_767,
    ]


def test_damaged_or_foreign_members_are_refused() -> None:
    member = bytearray(encode_flac_int16(np.random.default_rng(0).integers(-9_999, 9_999, 40_000).astype(np.int16)))
    with pytest.raises(AudioError):
        decode_flac_int16(bytes(member[: len(member) // 2]))
    with pytest.raises(AudioError):
        decode_flac_int16(bytes(member), 39_999, 2)
    with pytest.raises(AudioError):
        decode_flac_int16(bytes(member), -1, 2)
    member[len(member) // 2] ^= 0xFF
    with pytest.raises(AudioError):
        decode_flac_int16(bytes(member))
    with pytest.raises(AudioError):
        decode_flac_int16(b"RIFF")
