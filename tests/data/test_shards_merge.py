"""Merging: the same clips, byte for byte, whatever the way, and no damage is taken along."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from cacophony.data.pack import pack
from cacophony.data.pack_report import read_report
from cacophony.data.shards import Shards
from cacophony.data.shards_check import check_shards
from cacophony.data.shards_merge import merge_shards
from cacophony.errors import InputError


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    for part, count in enumerate((5, 2, 4)):
        audio = tmp_path / f"audio{part}" / f"set{part}"
        audio.mkdir(parents=True)
        for i in range(count):
            sf.write(
                audio / f"{i}.wav", np.random.default_rng(9 * part + i).uniform(-0.3, 0.3, 16_000 + 99 * i), 16_000
            )
        (audio / "0b.wav").write_text("no audio")
        lines = ["file,caption", *(f"set{part}/{i}.wav,noise {i}" for i in range(count)), f"set{part}/0b.wav,x"]
        (audio / "c.csv").write_text("\n".join(lines))
        pack(audio.parent, tmp_path / f"part{part}", captions=audio / "c.csv", clips_per_shard=3, workers=1)
    return [tmp_path / f"part{part}" for part in range(3)]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_merge_holds_the_members_of_its_parts_in_their_order(parts: list[Path], tmp_path: Path) -> None:
    index = merge_shards(parts, tmp_path / "all", clips_per_shard=4)
    with Shards.open(tmp_path / "all") as merged:
        assert len(merged) == index.clips == 11
        assert merged.has_captions
        assert [merged.clip(i).key for i in range(11)] == [f"{i:09d}" for i in range(11)]
        at = 0
        for part in parts:
            with Shards.open(part) as shards:
                for i in range(len(shards)):
                    assert merged.members(at) == shards.members(i)
                    at += 1
    assert check_shards(tmp_path / "all", workers=1).problems == []
    rows = list(read_report(tmp_path / "all"))
    assert [row.key for row in rows if row.key] == [f"{i:09d}" for i in range(11)]
    assert [row.file for row in rows if row.status == "skipped"] == [f"set{part}/0b.wav" for part in range(3)]


def test_merging_parts_of_a_merge_gives_the_same_bytes(parts: list[Path], tmp_path: Path) -> None:
    merge_shards(parts, tmp_path / "all", clips_per_shard=4)
    merge_shards(parts[:2], tmp_path / "two", clips_per_shard=2)
    merge_shards([tmp_path / "two", parts[2]], tmp_path / "then", clips_per_shard=4)
    assert contents(tmp_path / "then") == contents(tmp_path / "all")


def test_the_fingerprint_of_a_merge_is_that_of_one_packing(tmp_path: Path) -> None:
    for i in range(5):
        folder = tmp_path / "audio" / "ab"[i > 2]
        folder.mkdir(parents=True, exist_ok=True)
        sf.write(folder / f"{i}.wav", np.random.default_rng(i).uniform(-0.3, 0.3, 17_000), 16_000)
    pack(tmp_path / "audio", tmp_path / "once", clips_per_shard=2, workers=1)
    merge_shards([tmp_path / "once"], tmp_path / "again", clips_per_shard=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "once")


def test_damage_is_not_taken_along_and_nothing_is_left(parts: list[Path], tmp_path: Path) -> None:
    tar = parts[1] / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 3] ^= 1
    tar.write_bytes(data)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=r"part1/shard-000000\.tar: .*SHA-256.*copy the shard again"):
        merge_shards(parts, tmp_path / "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_wrong_arguments_and_reports_are_refused(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a packed directory"):
        merge_shards([tmp_path], tmp_path / "all")
    with pytest.raises(InputError, match="not empty"):
        merge_shards(parts, parts[0])
    with pytest.raises(InputError, match="0 directories"):
        merge_shards([], tmp_path / "all")
    report = parts[0] / "report.csv"
    report.write_text("".join(report.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"report\.csv: does not name the 5 clips"):
        merge_shards(parts, tmp_path / "all")
    report.write_text("a,b\n")
    with pytest.raises(InputError, match="expected the columns file, status"):
        merge_shards(parts, tmp_path / "all")
    report.unlink()
    with pytest.raises(InputError, match="copy it again, or pack again"):
        merge_shards(parts, tmp_path / "all")
    assert not (tmp_path / "all").exists()
