"""A corpus of which 3 % is damaged: exactly that is refused, with the reason, and what is only unusual is converted."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from cacophony.data.pack import pack
from cacophony.data.pack_report import read_report
from cacophony.data.shards import Shards
from cacophony.data.shards_check import check_shards

CLIPS = 300
SECONDS = 1.1
TRUNCATED = "truncated or damaged"


def tone(rate: int, hertz: float) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(round(rate * SECONDS)) / rate)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: -len(data) // 5])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 9 // 10] ^= 0x10
    path.write_bytes(data)


def claim_ten_hours(path: Path) -> None:
    data = bytearray(path.read_bytes())
    size = 36_000 * 16_000 * 2
    data[4:8], data[40:44] = struct.pack("<I", size + 36), struct.pack("<I", size)
    path.write_bytes(data)


def claim_ten_hours_of_flac(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO: 36 bits of total samples
    data[22:26] = struct.pack(">I", 36_000 * 16_000)
    path.write_bytes(data)


def not_finite(path: Path) -> None:
    sf.write(path, np.where(np.arange(20_000) == 9_999, np.nan, 0.1), 16_000, subtype="FLOAT")


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("wav", cut, TRUNCATED),
    ("flac", cut, TRUNCATED),
    ("ogg", cut, TRUNCATED),
    ("wav", lambda path: path.write_bytes(b""), "empty file (0 bytes)"),
    ("flac", flip, TRUNCATED),
    ("ogg", flip, TRUNCATED),
    ("wav", lambda path: path.write_text("404: this is no audio\n" * 500), "not an audio file libsndfile can read"),
    ("wav", not_finite, "NaN or infinite samples"),
    ("wav", claim_ten_hours, TRUNCATED),
    ("flac", claim_ten_hours_of_flac, "too long"),
]
UNUSUAL = [
    ("8-bit.wav", 16_000, 1, "PCM_U8"),
    ("24-bit.wav", 16_000, 1, "PCM_24"),
    ("24-bit.flac", 44_100, 1, "PCM_24"),
    ("96 kHz.wav", 96_000, 1, "PCM_16"),
    ("8 channels.wav", 48_000, 8, "PCM_16"),
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Shards of the corpus, and the reason that is due for each damaged file."""
    folder = tmp_path_factory.mktemp("damaged")
    audio = folder / "audio"
    audio.mkdir()
    for name, rate, channels, subtype in UNUSUAL:
        sf.write(audio / name, np.tile(tone(rate, 1_000)[:, None], channels), rate, subtype=subtype)
    kinds = ("wav", "flac", "ogg")
    names = [f"{i:03}.{kinds[i % 3]}" for i in range(CLIPS - len(UNUSUAL))]
    for i, name in enumerate(names):
        sf.write(audio / name, tone(16_000, 200 + 10 * i), 16_000)
    expected = {}
    for number, (kind, damage, reason) in enumerate(DAMAGE):
        name = [name for name in names if name.endswith(kind)][7 * number]
        damage(audio / name)
        expected[name] = reason
    pack(audio, folder / "out", workers=2, clips_per_shard=64)
    return folder / "out", expected


def test_exactly_the_damaged_files_are_refused_each_with_its_reason(packed: tuple[Path, dict[str, str]]) -> None:
    out, expected = packed
    assert len(expected) / CLIPS == pytest.approx(0.03, abs=0.004)
    rows = list(read_report(out))
    assert {row.file: row.reason for row in rows if row.status == "skipped"} == expected
    assert sum(row.status == "kept" for row in rows) == CLIPS - len(expected)


def test_unusual_audio_is_converted_to_the_same_sound(packed: tuple[Path, dict[str, str]]) -> None:
    with Shards.open(packed[0]) as shards:
        at = {shards.clip(i).source: i for i in range(len(shards))}
        for name, *_ in UNUSUAL:
            wave = shards.read(at[name]) / 32_768
            assert len(wave) == round(16_000 * SECONDS)
            middle = slice(2_000, -2_000)
            error = np.abs(wave[middle] - tone(16_000, 1_000)[middle]).max()
            assert error < (0.01 if name == "8-bit.wav" else 0.001), name


def test_what_was_packed_passes_the_check(packed: tuple[Path, dict[str, str]]) -> None:
    assert check_shards(packed[0], workers=2).problems == []
