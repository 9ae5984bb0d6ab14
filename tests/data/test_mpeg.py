"""MP3 of which libsndfile would leave out a part: all frames are counted, and nothing else is taken for one."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from cacophony.data.audio import UNDECLARED, AudioError, read_audio
from cacophony.data.mpeg import mpeg_samples

TAG = b"ID3\x03\0\0\0\0\x02\x00" + bytes(256)  # of 2 * 128 bytes


def mp3(path: Path, rate: int = 44_100, seconds: float = 2.0, level: float = 0.5, mode: str = "CONSTANT") -> bytes:
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, round(rate * seconds))
    sf.write(path, wave, rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode, compression_level=level)
    return path.read_bytes()


def frames_behind_the_header(data: bytes) -> bytes:
    """Without the first frame, which holds no audio: Xing's header, or Info."""
    return data[data.index(b"\xff" + data[1:2], 4) :]


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_all_frames_of_a_file_are_counted(rate: int, mode: str, tmp_path: Path) -> None:
    data = mp3(tmp_path / "a.mp3", rate, mode=mode)
    frame = 1_152 if rate >= 32_000 else 576
    counted = mpeg_samples(tmp_path / "a.mp3", 1 << 40)
    assert 2 * rate <= counted <= 2 * rate + 6 * frame
    assert counted % frame == 0
    assert len(read_audio(tmp_path / "a.mp3")) == 32_000
    for before, behind in ((TAG, b"TAG" + bytes(125)), (2 * TAG + b"\xff\xfb\0junk", b"APETAGEX" + b"\xff" * 99)):
        (tmp_path / "b.mp3").write_bytes(before + data + behind)
        assert mpeg_samples(tmp_path / "b.mp3", 1 << 40) == counted
    (tmp_path / "b.mp3").write_bytes(data + TAG + data)
    assert mpeg_samples(tmp_path / "b.mp3", 1 << 40) == 2 * counted
    assert counted < mpeg_samples(tmp_path / "b.mp3", counted) <= counted + frame


def test_what_would_be_cut_in_silence_is_refused(tmp_path: Path) -> None:
    loud, small = mp3(tmp_path / "a.mp3", level=0.0), mp3(tmp_path / "b.mp3", level=0.99)
    whole = frames_behind_the_header(loud)
    (tmp_path / "c.mp3").write_bytes(whole)
    assert abs(len(read_audio(tmp_path / "c.mp3")) - 32_000) < 1_600
    # Joined files, and a variable bit rate without Xing's header, whose length is guessed by the first frame.
    for joined in (loud + loud, loud + TAG + small, whole + frames_behind_the_header(small)):
        (tmp_path / "c.mp3").write_bytes(joined)
        assert len(sf.read(tmp_path / "c.mp3")[0]) < 1.5 * 2 * 44_100
        with pytest.raises(AudioError, match=UNDECLARED):
            read_audio(tmp_path / "c.mp3")


def test_other_bytes_have_no_frames_and_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for data in (b"", b"ID3", b"\xff\xfb", b"\xff" * 100_000, 3 * TAG, b"ID3\3\0\0" + b"\x7f" * 99, rng.bytes(100_000)):
        (tmp_path / "a.mp3").write_bytes(data)
        assert mpeg_samples(tmp_path / "a.mp3", 1 << 40) == 0
