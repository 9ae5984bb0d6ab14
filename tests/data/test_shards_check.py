"""Checking packed directories: whole ones pass, and every kind of damage is named where it is."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from cacophony.data.audio import decode_flac_int16, encode_flac_int16
from cacophony.data.pack import pack
from cacophony.data.shard_writer import ShardWriter, sha256_of
from cacophony.data.shards import Shards
from cacophony.data.shards_check import Problem, ShardsReport, check_shards
from cacophony.errors import InputError

CLIPS = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    lines = ["file,caption,synthetic"]
    for i in range(CLIPS):
        name = f"{'sea' if i % 2 else 'land'}/{i}.wav"
        (folder / "audio" / name).parent.mkdir(parents=True, exist_ok=True)
        wave = np.random.default_rng(i % 5).integers(-9_999, 9_999, 16_000 + 500 * (i % 5)).astype(np.int16)
        sf.write(folder / "audio" / name, wave, 16_000)
        lines += [f"{name},noise {i},", f"{name},machine {i},yes"][: 1 + i % 2]
    (folder / "c.csv").write_text("\n".join(lines))
    pack(folder / "audio", folder / "out", captions=folder / "c.csv", clips_per_shard=3, workers=1)
    return folder / "out"


@pytest.fixture
def packed(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def check(folder: Path) -> ShardsReport:
    return check_shards(folder, workers=1, progress=False)


def found(folder: Path) -> set[tuple[str, str, str]]:
    return {(problem.file, problem.member, problem.reason) for problem in check(folder).problems}


def member(tar: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(tar) as archive:
        return archive.getmember(name)


def alter(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def rewrite(
    folder: Path, number: int, change: Callable[[int, bytes, dict[str, Any]], tuple[bytes, dict[str, Any]]]
) -> None:
    """Write a shard anew with changed clips, and an index that says it is as it should be."""
    tar = folder / f"shard-{number:06d}.tar"
    with tarfile.open(tar) as archive:
        data = [(info.name, file.read()) for info in archive if (file := archive.extractfile(info)) is not None]
    with ShardWriter(tar) as writer:
        for at, ((name, flac), (_, text)) in enumerate(zip(data[::2], data[1::2], strict=True)):
            writer.add(name.removesuffix(".flac"), *change(at, flac, json.loads(text)))
        size, sha256 = writer.commit()
    change_index(folder, lambda index: index["shards"][number].update(bytes=size, sha256=sha256))


def test_a_whole_directory_passes_with_its_counts_and_its_duplicates(packed: Path) -> None:
    report = check_shards(packed, workers=2)
    assert report.problems == []
    assert report.shards == 3
    assert {name: counts["clips"] for name, counts in report.sources.items()} == {"land": 4, "sea": 3}
    assert report.sources["sea"] == {
        "clips": 3,
        "samples": 3 * 16_000 + 500 * (1 + 3 + 0),
        "captions": 3,
        "synthetic": 3,
        "captioned": 3,
    }
    # Clips 5 and 6 repeat 0 and 1, sorted by name: land/0 2 4 6, sea/1 3 5.
    assert report.duplicates == [
        ["shard-000000.tar:0", "shard-000002.tar:0"],
        ["shard-000001.tar:0", "shard-000001.tar:1"],
    ]
    text = "\n".join(report.lines())
    assert "land" in text
    assert "2 clips are copies" in text
    assert json.loads(json.dumps(report.content()))["problems"] == []


def test_a_flipped_bit_is_named_with_its_clip(packed: Path) -> None:
    tar = packed / "shard-000001.tar"
    info = member(tar, "000000004.flac")
    alter(tar, info.offset_data + info.size // 2, b"\x55\xaa")
    problems = check(packed).problems
    assert Problem("shard-000001.tar", "000000004.flac", "truncated or damaged", "sea") in problems
    assert Problem("shard-000001.tar", "", "its bytes are not those that were packed (SHA-256)", "") in problems
    assert {problem.file for problem in problems} == {"shard-000001.tar", "index.json"}  # and the fingerprint


def test_other_samples_behind_right_checksums_are_seen(packed: Path) -> None:
    """A stream whose frames are right and whose MD5 is that of other samples."""

    def change(at: int, flac: bytes, record: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        if at == 0:
            other = encode_flac_int16(decode_flac_int16(flac) // 2)
            flac = other[:26] + flac[26:42] + other[42:]
        return flac, record

    rewrite(packed, 0, change)
    assert ("shard-000000.tar", "000000000.flac", "its samples are not those that were encoded (MD5)") in found(packed)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"samples": 16_001, "duration": 16_001 / 16_000}, "16000 samples, its record says 16001"),
        ({"sample_rate": 44_100}, "sample_rate is 44100, expected 16000"),
        ({"duration": 9.0}, "samples 16000 and duration 9.0 do not fit"),
        ({"text": "not a list"}, "text or synthetic_text is no list of strings"),
        ({"text": [""]}, "empty caption"),
        ({"text": ["x" * 10_001]}, "caption over 10000 characters"),
        ({"source": ""}, "no source"),
        ({"text": None, "samples": []}, "samples [] and duration 1.0 do not fit"),
    ],
)
def test_records_that_do_not_fit_are_named(packed: Path, values: dict[str, Any], reason: str) -> None:
    rewrite(packed, 0, lambda at, flac, record: (flac, record | (values if at == 0 else {})))
    assert reason in {reason for file, name, reason in found(packed) if file.endswith(".tar") and "000000000" in name}


def test_audio_of_another_rate_is_named(packed: Path) -> None:
    box = io.BytesIO()
    sf.write(box, np.zeros(44_100, np.int16), 44_100, format="FLAC")
    rewrite(packed, 0, lambda at, flac, record: (box.getvalue() if at == 1 else flac, record))
    reason = "FLAC at 44100 Hz with 1 channels"
    assert ("shard-000000.tar", "000000001.flac", reason) in found(packed)


def test_missing_extra_and_half_written_shards_are_named(packed: Path) -> None:
    first, second = packed / "shard-000000.tar", packed / "shard-000001.tar"
    shutil.copy(second, packed / "shard-000007.tar")
    (packed / "shard-000008.tar.tmp").touch()
    first.unlink()
    size = second.stat().st_size
    second.write_bytes(second.read_bytes()[: size // 2])
    there = found(packed)
    assert {
        ("shard-000000.tar", "", "No such file or directory"),
        ("shard-000007.tar", "", "not in index.json"),
        ("shard-000008.tar.tmp", "", "not in index.json"),
        ("shard-000001.tar", "", f"{size // 2} bytes, expected {size}: half written or another shard"),
    } <= there
    assert any(name == "" and "clips, expected 3" in reason for file, name, reason in there if file == second.name)


@pytest.mark.parametrize("name", ["shard-000007.tar", "shard-000008.tar.tmp", "shard-000009.idx"])
def test_training_refuses_strays_by_name(packed: Path, name: str) -> None:
    (packed / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"{name}: not in index\.json"):
        Shards.open(packed)


def test_an_idx_that_disagrees_with_its_tar_is_named_and_refused(packed: Path) -> None:
    idx = packed / "shard-000000.idx"
    lines = idx.read_text().splitlines()
    words = [line.split() for line in lines[1:]]
    words[0][1], words[1][1] = words[1][1], words[0][1]  # two clips exchanged, all inside the tar
    idx.write_text("\n".join([lines[0], *map(" ".join, words)]))
    assert ("shard-000000.tar", "", "shard-000000.idx disagrees with the tar in 2 of 4 lines") in found(packed)
    with pytest.raises(InputError, match=r"shard-000000\.idx: not the index of its tar"):
        Shards.open(packed)


def test_an_idx_of_another_tar_of_the_same_sizes_is_refused_at_the_first_read(packed: Path) -> None:
    idx = packed / "shard-000001.idx"
    idx.write_text(idx.read_text().replace("000000004", "000000009"))
    assert ("shard-000001.tar", "", "shard-000001.idx disagrees with the tar in 1 of 4 lines") in found(packed)
    with Shards.open(packed) as shards:
        shards.clip(3)
        with pytest.raises(InputError, match="the tar has another member there than the idx says"):
            shards.clip(4)
        with pytest.raises(InputError, match="the tar has another member there than the idx says"):
            shards.read(4)


def test_links_and_strangers_inside_a_tar_are_named(packed: Path) -> None:
    tar = packed / "shard-000000.tar"
    with tarfile.open(tar, "a") as archive:
        link = tarfile.TarInfo("../../evil.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("notes.txt"))
    size = tar.stat().st_size
    change_index(packed, lambda index: index["shards"][0].update(bytes=size, sha256=sha256_of(tar)))
    there = found(packed)
    assert ("shard-000000.tar", "../../evil.flac", "tar member that is a link or another special file") in there
    assert ("shard-000000.tar", "notes.txt", "not a member <key>.flac followed by <key>.json") in there
    with pytest.raises(InputError, match="not the index of its tar"):
        Shards.open(packed)


def test_names_from_a_hostile_tar_cannot_steer_the_terminal(packed: Path) -> None:
    with tarfile.open(packed / "shard-000000.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("\x1b[2Jx\n.flac"))
    lines = check(packed).lines()
    assert any("\ufffd[2Jx\ufffd.flac" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_shards_of_which_nothing_is_left_are_named(packed: Path) -> None:
    for tar in packed.glob("*.tar"):
        tar.write_bytes(b"")
    report = check(packed)
    assert report.sources == {}
    assert {f"shard-00000{n}.tar" for n in range(3)} <= {problem.file for problem in report.problems}
    assert report.lines()


@pytest.mark.parametrize(
    ("name", "value"),
    [("captions", 99), ("captioned_clips", 6), ("seconds", 1.0), ("fingerprint", "0" * 64)],
)
def test_an_index_that_counts_otherwise_is_named(packed: Path, name: str, value: object) -> None:
    change_index(packed, lambda index: index.update({name: value}))
    (problem,) = check(packed).problems
    assert (problem.file, problem.reason.startswith(f"{name} is {value}")) == ("index.json", True)


def test_sizes_that_disagree_are_named(packed: Path) -> None:
    (packed / "sizes.json").write_text('{"shard-000000.tar": 4}')
    assert found(packed) == {("sizes.json", "", "disagrees with index.json")}


def test_no_packed_directory_is_an_error(tmp_path: Path, packed: Path) -> None:
    with pytest.raises(InputError, match="not a packed directory"):
        check(tmp_path)
    with pytest.raises(InputError, match="workers is 0"):
        check_shards(packed, workers=0)
