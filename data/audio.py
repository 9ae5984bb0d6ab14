"""Audio files: any rate and channel count to 16 kHz mono, and the FLAC members of the shards.

What a file claims about itself is not trusted: it is decoded in blocks, resampled as it streams, and a file that ends
early is refused, also where libsndfile would shorten it in silence.
"""

import contextlib
import io
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr

from ..errors import InputError
from .flac import decode_native, is_within, native_samples
from .mpeg import mpeg_samples
from .ogg import ogg_is_whole
from .riff import riff_is_whole

SAMPLE_RATE = 16_000
"""Samples per second of everything behind packing."""

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
"""How the name of a file ends that is taken for audio, in lower case."""
UNREAD_SUFFIXES = (".m4a", ".aac", ".wma", ".amr", ".ape", ".wv", ".mka", ".tta", ".mpc")
"""How the name of audio ends that libsndfile cannot read."""

NOT_OPENED = "file cannot be opened"
EMPTY_FILE = "empty file (0 bytes)"
UNREAD = "of a kind that is not read (convert it, to FLAC say)"
NOT_AUDIO = "not an audio file libsndfile can read"
TRUNCATED = "truncated or damaged"
NO_SAMPLES = "no samples"
NOT_FINITE = "NaN or infinite samples"
NOT_SCALED = "samples far beyond full scale (of integers, in a file of floats?)"
UNDECLARED = "holds more audio than its header declares"
TOO_SHORT = "too short"
TOO_LONG = "too long"
ODD_RATE = "sample rate outside 1 to 768 kHz"

_BLOCK_VALUES = 1 << 18
_RATES = range(1_000, 768_001)
_UNKNOWN_FRAMES = 1 << 40
# libsndfile's log holds the only trace of a chunk that ends early.
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
# A writer that cannot seek back leaves 0, 2^31 - something or 2^32 - 1 as the size.
_STREAMED_BYTES = 0x7FFF_0000
# One MPEG frame: encoders disagree by that much on the count of a whole file.
_MPEG_FRAME = 1_152
# Samples that are no audio: the header's frame, and what an encoder may say to have added before and behind.
_MPEG_PADDING = _MPEG_FRAME + 2 * 4_095
# Decoded MP3 reaches 1.5 or so, integers of 8 bits 128.
_MAX_PEAK = 16.0
# Of libsndfile's log, which is full then: what is said of the data may be missing.
_FULL_LOG = 2_047


class AudioError(InputError):
    """An audio file that cannot be used; `reason` is the short cause without the path."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{printable(os.fspath(path))}: {reason}; expected a whole audio file: replace or remove it")
        self.reason = reason


def printable(name: str) -> str:
    """A file name as it may stand in a line of text: what is no printable character becomes U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


class _Forward(sf.SoundFile):
    """A sound file that is only read forward: soundfile otherwise seeks, which fails on FLAC of undeclared length."""

    def seekable(self) -> bool:
        return False


def probe_seconds(path: str | os.PathLike[str]) -> float:
    """Duration in seconds that the header declares, without decoding; `inf` where it declares none.

    Raises `AudioError` for an empty file or one that libsndfile cannot read.
    """
    with _open(path) as file:
        return _declared_seconds(file)


def check_seconds(path: str | os.PathLike[str], seconds: float, min_seconds: float, max_seconds: float) -> None:
    """Raise `AudioError` (too short, too long) unless `min_seconds` <= `seconds` <= `max_seconds`."""
    if seconds < min_seconds:
        raise AudioError(path, TOO_SHORT)
    if seconds > max_seconds:
        raise AudioError(path, TOO_LONG)


def read_audio(
    path: str | os.PathLike[str], *, min_seconds: float = 0.0, max_seconds: float = math.inf
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Decode a file to float32 `[n]` at 16 kHz: mean over the channels, then soxr HQ; n = round(frames * 16000 / rate).

    The duration in seconds is checked against the header before decoding and against the samples after it. Memory is
    bounded by `max_seconds` of 16 kHz mono, whatever the header claims.

    Raises `AudioError` for a file that is empty, not audio, truncated, without samples, with NaN, infinite or huge
    samples, with more audio than libsndfile gives, too short or too long.
    """
    with _open(path) as file:
        rate = file.samplerate
        declared = _declared_seconds(file)
        if rate not in _RATES:
            raise AudioError(path, ODD_RATE)
        if _ends_early(file, path):
            raise AudioError(path, TRUNCATED)
        if file.frames == 0:
            raise AudioError(path, NO_SAMPLES)
        if math.isfinite(declared):
            check_seconds(path, declared, min_seconds, max_seconds)
        wave, frames = _decode(file, path, max_seconds)
        allowance = _MPEG_FRAME if file.format == "MP3" else 0
        if math.isfinite(declared) and frames < file.frames - allowance:
            raise AudioError(path, TRUNCATED)
        if file.format == "MP3" and mpeg_samples(Path(path), frames + _MPEG_PADDING) > frames + _MPEG_PADDING:
            raise AudioError(path, UNDECLARED)
    if frames == 0:
        raise AudioError(path, NO_SAMPLES)
    check_seconds(path, frames / rate, min_seconds, max_seconds)
    return wave


def encode_flac_int16(wave: np.ndarray) -> bytes:
    """FLAC bytes (16 kHz mono PCM_16) of a float `[n]` wave in [-1, 1) (louder is clipped) or an int16 `[n]` wave."""
    if wave.dtype != np.int16:
        wave = np.clip(np.rint(wave * np.float32(32_768)), -32_768, 32_767).astype(np.int16)
    buffer = io.BytesIO()
    sf.write(buffer, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac_int16(data: bytes, start: int = 0, frames: int = -1) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Samples `start` to `start + frames` (-1: to the end) of 16 kHz mono FLAC bytes, int16 `[frames]`; seeks.

    Decoded by the native library where that takes the stream (see `flac`), else by soundfile. Raises `AudioError` when
    the bytes are not 16 kHz mono audio, are damaged, or hold fewer samples than asked for.
    """
    declared = native_samples(data)
    stop = declared if frames < 0 else start + frames
    if is_within(start, stop, declared):
        with contextlib.suppress(ValueError):
            return decode_native(data, start, stop - start)
    return decode_flac_by_soundfile(data, start, frames)


def decode_flac_by_soundfile(data: bytes, start: int = 0, frames: int = -1) -> np.ndarray[Any, np.dtype[np.int16]]:
    """What `decode_flac_int16` returns and raises, decoded by soundfile."""
    name = "FLAC member"
    try:
        with sf.SoundFile(io.BytesIO(data)) as file:
            if (file.format, file.samplerate, file.channels) != ("FLAC", SAMPLE_RATE, 1):
                raise AudioError(name, f"{file.format} at {file.samplerate} Hz with {file.channels} channels")
            stop = file.frames if frames < 0 else start + frames
            if not is_within(start, stop, file.frames):
                raise AudioError(name, f"samples {start} to {stop} asked for, {file.frames} declared")
            file.seek(start)
            wave = np.asarray(file.read(stop - start, dtype="int16"), np.int16)
    except (sf.LibsndfileError, RuntimeError) as error:
        raise AudioError(name, TRUNCATED) from error
    if len(wave) != stop - start:
        raise AudioError(name, TRUNCATED)
    return wave


def _open(path: str | os.PathLike[str]) -> _Forward:
    try:
        if os.path.getsize(path) == 0:
            raise AudioError(path, EMPTY_FILE)
        if not os.path.isfile(path):
            raise AudioError(path, NOT_AUDIO)
        return _Forward(os.fspath(path))
    except AudioError:
        raise
    except (OSError, ValueError) as error:  # a name that is no UTF-8, or has a zero byte, cannot be handed on
        raise AudioError(path, NOT_OPENED) from error
    except (sf.LibsndfileError, RuntimeError) as error:
        raise AudioError(path, NOT_AUDIO) from error


def _declared_seconds(file: sf.SoundFile) -> float:
    return file.frames / file.samplerate if 0 <= file.frames < _UNKNOWN_FRAMES else math.inf


def _decode(file: sf.SoundFile, path: str | os.PathLike[str], max_seconds: float) -> tuple[np.ndarray, int]:
    """The 16 kHz mono wave and the count of frames read at the file's own rate."""
    rate = file.samplerate
    resample = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ") if rate != SAMPLE_RATE else None
    block_frames = max(1, _BLOCK_VALUES // file.channels)
    parts: list[np.ndarray] = []
    frames = 0
    while True:
        try:
            block = file.read(block_frames, dtype="float32", always_2d=True)
        except (sf.LibsndfileError, RuntimeError) as error:
            raise AudioError(path, TRUNCATED) from error
        if len(block) == 0:
            break
        frames += len(block)
        if frames > max_seconds * rate:
            raise AudioError(path, TOO_LONG)
        with np.errstate(over="ignore", invalid="ignore"):
            mono = block.mean(axis=1)
        peak = float(np.abs(mono).max())
        if not math.isfinite(peak):
            raise AudioError(path, NOT_FINITE)
        if peak > _MAX_PEAK:
            raise AudioError(path, NOT_SCALED)
        parts.append(resample.resample_chunk(mono) if resample else mono)
    if resample:
        parts.append(resample.resample_chunk(np.zeros(0, np.float32), last=True))
    wave = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return wave[: round(frames * SAMPLE_RATE / rate)], frames


def _ends_early(file: sf.SoundFile, path: str | os.PathLike[str]) -> bool:
    if file.format == "OGG":
        return not ogg_is_whole(Path(path))
    if file.format in ("WAV", "WAVEX") and len(file.extra_info) >= _FULL_LOG:
        return not riff_is_whole(Path(path), _STREAMED_BYTES)
    for declared, found in _SHORT_CHUNK.findall(file.extra_info):
        if int(found) < int(declared) < _STREAMED_BYTES:
            return True
    return False
