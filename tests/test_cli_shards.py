"""The commands about shards at the front door: pack, check, merge, stats; exit codes, tables and files."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
from cacophony.__main__ import main


@pytest.fixture
def packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    audio = tmp_path / "audio" / "dogs"
    audio.mkdir(parents=True)
    for i in range(3):
        soundfile.write(audio / f"{i}.flac", np.random.default_rng(i).normal(0, 0.1, 16_000 + 800 * i), 16_000)
        (audio / f"{i}.json").write_text(json.dumps({"text": [f"a dog {i}", "barking"], "tag": ["dog"]}))
    assert main(["pack", str(tmp_path / "audio"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "read as laion" in capsys.readouterr().out
    return tmp_path / "out"


def test_good_shards_end_with_0_a_table_and_json(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = packed.parent / "check.json"
    assert main(["shards", "check", str(packed), "--json", str(out)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["source", "clips", "hours", "captions", "synthetic", "problems"]
    assert table[1].split() == ["dogs", "3", "0.00", "6", "0", "0"]
    found = json.loads(out.read_text())
    assert (found["problems"], found["sources"]["dogs"]["clips"]) == ([], 3)


def test_bad_shards_end_with_2_after_table_and_json(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (packed / "shard-000003.tar").write_bytes(b"x")
    out = packed.parent / "check.json"
    assert main(["shards", "check", str(packed), "--json", str(out)]) == 2
    captured = capsys.readouterr()
    assert "shard-000003.tar: not in index.json" in captured.out
    assert len(captured.err.splitlines()) == 1
    assert "1 problem" in captured.err
    assert json.loads(out.read_text())["problems"][0]["file"] == "shard-000003.tar"


def test_a_merge_is_as_large_as_its_parts_and_its_copies_are_counted(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = str(packed.parent / "both")
    assert main(["shards", "merge", str(packed), str(packed), "--out", both]) == 0
    assert "6 clips" in capsys.readouterr().out
    assert main(["shards", "check", both]) == 0
    assert "3 clips are copies of another" in capsys.readouterr().out
    assert main(["shards", "merge", str(packed), "--out", both]) == 2
    assert "not empty" in capsys.readouterr().err


def test_stats_are_printed_written_and_drawn(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, picture = packed.parent / "stats.json", packed.parent / "stats.png"
    argv = ["shards", "stats", str(packed), "--tokenizer", "train", "--json", str(data), "--png", str(picture)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "3 clips, 0.00 h, 6 captions" in printed
    assert "tokenizer: trained" in printed
    stats = json.loads(data.read_text())
    assert sum(stats["tokens_histogram"].values()) == 6
    assert stats["captions_per_clip"] == {"2": 3}
    assert matplotlib.image.imread(picture).std() > 0.01


@pytest.mark.parametrize("command", ["check", "stats", "merge"])
def test_what_is_no_packed_directory_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    out = ["--out", str(tmp_path / "out")] if command == "merge" else []
    assert main(["shards", command, str(tmp_path / "absent"), *out]) == 2
    assert "absent: not a packed directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["check", "stats", "merge"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["shards", command, "--help"])
    assert exit_.value.code == 0
    assert f"cacophony shards {command}" in capsys.readouterr().out
