"""The shard format as others read it, and reading it back with nothing taken on trust."""

import functools
import json
import os
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from cacophony.data import shards as shards_module
from cacophony.data.pack import pack
from cacophony.data.shards import Shards
from cacophony.errors import InputError

CLIPS = 7


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    lines = ["file,caption,synthetic"]
    for i in range(CLIPS):
        wave = rng.integers(-9_999, 9_999, 16_000 + 500 * i).astype(np.int16)
        sf.write(tmp_path / "audio" / f"{i} größe.wav", wave, 16_000)
        lines += [f"{i} größe.wav,Geräusch {i},", f"{i} größe.wav,machine {i},yes"]
    (tmp_path / "c.csv").write_text("\n".join(lines), encoding="utf-8")
    pack(tmp_path / "audio", tmp_path / "out", captions=tmp_path / "c.csv", clips_per_shard=3, workers=2)
    return tmp_path / "out"


def change_index(packed: Path, **values: Any) -> None:
    path = packed / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_tars_are_plain_ustar_with_ascii_names(packed: Path) -> None:
    for path in sorted(packed.glob("*.tar")):
        data = path.read_bytes()
        assert len(data) % tarfile.RECORDSIZE == 0
        assert data[257:263] == b"ustar\0"
        with tarfile.open(path) as tar:
            assert not tar.pax_headers
            for member in tar:
                assert member.isreg()
                assert not member.pax_headers
                assert member.name.isascii()
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)


def test_the_index_points_at_the_data_of_each_member(packed: Path) -> None:
    clips = 0
    for path in sorted(packed.glob("*.tar")):
        header, *rows = path.with_suffix(".idx").read_text().splitlines()
        assert header == f"v1.2 {len(rows)}"
        with tarfile.open(path) as tar:
            members = {member.name: (member.offset_data, member.size) for member in tar}
        for row in rows:
            words = row.split(" ")
            assert words[::4] == ["flac", "json"]
            for offset, size, name in (words[1:4], words[5:8]):
                assert members.pop(name) == (int(offset), int(size))
            clips += 1
        assert not members
    assert clips == CLIPS


def test_sidecars_count_the_clips(packed: Path) -> None:
    index = json.loads((packed / "index.json").read_text())
    assert json.loads((packed / "sizes.json").read_text()) == {
        shard["name"]: shard["clips"] for shard in index["shards"]
    }
    assert (index["format"], index["version"], index["sample_rate"]) == ("cacophony-shards", 2, 16_000)
    assert (index["clips"], index["captions"], index["synthetic_captions"]) == (CLIPS, CLIPS, CLIPS)
    assert index["seconds"] == pytest.approx(sum(1 + 500 * i / 16_000 for i in range(CLIPS)))
    assert {path.name for path in packed.iterdir()} == {
        "index.json",
        "sizes.json",
        "report.csv",
        *(f"shard-00000{n}.{kind}" for n in range(3) for kind in ("tar", "idx")),
    }


def test_json_members_hold_utf_8_as_written(packed: Path) -> None:
    with tarfile.open(packed / "shard-000000.tar") as tar:
        member = tar.extractfile(tar.getnames()[1])
        assert member is not None
        data = member.read()
        audio = tar.extractfile(tar.getnames()[0])
        assert audio is not None
        assert "Geräusch 0".encode() in data
        assert json.loads(data) == {
            "text": ["Geräusch 0"],
            "synthetic_text": ["machine 0"],
            "duration": 1.0,
            "sample_rate": 16_000,
            "samples": 16_000,
            "source": "0 größe.wav",
            "flac_crc32": zlib.crc32(audio.read()),
        }


def test_clips_are_read_back_from_many_threads(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "_MAX_OPEN", 2)
    waves = [sf.read(packed.parent / "audio" / f"{i} größe.wav", dtype="int16")[0] for i in range(CLIPS)]

    def check(i: int) -> None:
        clip = shards.clip(i % CLIPS)
        assert (clip.index, clip.samples, clip.source) == (i % CLIPS, len(waves[i % CLIPS]), f"{i % CLIPS} größe.wav")
        assert np.array_equal(shards.read(i % CLIPS), waves[i % CLIPS])
        assert np.array_equal(shards.read(i % CLIPS, 5_000 + i, 77), waves[i % CLIPS][5_000 + i : 5_077 + i])

    with Shards.open(packed) as shards, ThreadPoolExecutor(4) as pool:
        assert len(shards) == CLIPS
        assert shards.has_captions
        list(pool.map(check, range(80)))
        assert list(shards.captions())[:3] == ["Geräusch 0", "machine 0", "Geräusch 1"]
        assert len(list(shards.captions())) == 2 * CLIPS
        with pytest.raises(IndexError):
            shards.clip(CLIPS)
        with pytest.raises(IndexError):
            shards.read(-1)


def test_tars_are_closed_with_their_shards_or_where_nobody_holds_these(packed: Path) -> None:
    def open_tars() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(str(packed) in os.readlink(link) for link in links if link.exists())

    with Shards.open(packed) as shards:
        assert [shards.clip(i).index for i in range(CLIPS)] == list(range(CLIPS))
        assert open_tars() == 3
    assert open_tars() == 0
    assert shards.clip(0).index == 0  # opens again
    read = functools.partial(shards.read, 0)
    del shards
    assert open_tars() == 1
    del read
    assert open_tars() == 0


def test_the_fingerprint_depends_on_the_clips_alone(packed: Path) -> None:
    audio = packed.parent / "audio"
    pack(audio, packed.parent / "other", captions=packed.parent / "c.csv", clips_per_shard=100)
    pack(audio, packed.parent / "mute")
    fingerprints = [Shards.open(packed.parent / name).fingerprint for name in ("out", "other", "mute")]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert len(fingerprints[0]) == 64
    assert not Shards.open(packed.parent / "mute").has_captions


def test_other_directories_and_versions_are_refused(packed: Path) -> None:
    with pytest.raises(InputError, match=r"not a packed directory.*cacophony pack"):
        Shards.open(packed.parent)
    change_index(packed, version=1)
    with pytest.raises(InputError, match="version is 1; expected 2"):
        Shards.open(packed)
    change_index(packed, format="zip")
    with pytest.raises(InputError, match="format is not cacophony-shards"):
        Shards.open(packed)
    (packed / "index.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not the index"):
        Shards.open(packed)


@pytest.mark.parametrize(
    "values",
    [
        {"shards": []},
        {"shards": [{"name": "../shard-000000.tar", "clips": 7, "bytes": 1}]},
        {"shards": [{"name": "shard-000000.tar", "clips": "7", "bytes": 1}]},
        {"clips": 8},
        {"sample_rate": 44_100},
        {"fingerprint": None},
    ],
)
def test_a_nonsensical_index_is_refused(packed: Path, values: dict[str, Any]) -> None:
    change_index(packed, **values)
    with pytest.raises(InputError, match=r"index\.json: .*pack again"):
        Shards.open(packed)


def test_missing_and_short_shards_are_refused(packed: Path) -> None:
    tar = packed / "shard-000001.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[:-512])
    with pytest.raises(InputError, match=rf"shard-000001\.tar: {len(data) - 512} bytes, expected {len(data)}"):
        Shards.open(packed)
    tar.unlink()
    with pytest.raises(InputError, match=r"shard-000001\.tar: No such file"):
        Shards.open(packed)


@pytest.mark.parametrize(
    ("place", "word"),
    [(3, "9999999"), (3, "-1"), (4, "99999999999999999999999"), (4, "x"), (5, "../a.flac"), (2, "wav"), (0, "v1.1")],
)
def test_hostile_offsets_and_names_are_refused(packed: Path, place: int, word: str) -> None:
    idx = packed / "shard-000000.idx"
    words = idx.read_text().split()
    words[place] = word
    idx.write_text(" ".join(words))
    with pytest.raises(InputError, match=r"shard-000000\.idx: "):
        Shards.open(packed)


@pytest.mark.parametrize("kind", ["flac", "json"])
def test_a_damaged_member_is_named(packed: Path, kind: str) -> None:
    tar = packed / "shard-000001.tar"
    with tarfile.open(tar) as archive:
        member = next(member for member in archive if member.name.endswith(kind))
    data = bytearray(tar.read_bytes())
    data[member.offset_data + member.size // 2] ^= 0xFF
    tar.write_bytes(data)
    shards = Shards.open(packed)
    shards.clip(4)
    shards.read(4)
    with pytest.raises(InputError, match=rf"shard-000001\.tar: member {member.name} is damaged"):
        shards.read(3) if kind == "flac" else shards.clip(3)
