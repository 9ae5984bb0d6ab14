"""Ogg pages: any flipped bit, missing page or missing end is seen."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from cacophony.data.ogg import ogg_is_whole


@pytest.fixture(params=["VORBIS", "OPUS"])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.ogg"
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, 96_000)
    sf.write(path, wave, 48_000, format="OGG", subtype=request.param)
    return path


def test_what_libsndfile_writes_is_whole(stream: Path) -> None:
    assert ogg_is_whole(stream)


def test_a_stream_behind_another_is_seen(stream: Path) -> None:
    stream.write_bytes(2 * stream.read_bytes())
    assert len(sf.read(stream)[0]) == 96_000  # libsndfile leaves it out
    assert not ogg_is_whole(stream)


def test_every_flipped_bit_is_seen(stream: Path) -> None:
    data = stream.read_bytes()
    rng = np.random.default_rng(1)
    for at, bit in zip(rng.integers(len(data), size=60), rng.integers(8, size=60), strict=True):
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        stream.write_bytes(damaged)
        assert not ogg_is_whole(stream), (at, bit)


def test_a_cut_anywhere_is_seen(stream: Path) -> None:
    data = stream.read_bytes()
    for end in [0, 3, 5, 26, 28, data.rindex(b"OggS"), data.rindex(b"OggS") + 5, len(data) - 1]:
        stream.write_bytes(data[:end])
        assert not ogg_is_whole(stream), end
