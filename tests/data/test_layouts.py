"""Corpora as others publish them: LAION's audio and json, in folders and tars, and WavCaps' one list."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from cacophony.data import captions as captions_module
from cacophony.data.pack import pack
from cacophony.data.pack_report import read_report
from cacophony.data.shards import Shards
from cacophony.errors import InputError

NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, 52_800)


def sound(kind: str = "flac", rate: int = 48_000) -> bytes:
    box = io.BytesIO()
    sf.write(box, NOISE, rate, format=kind)
    return box.getvalue()


def captions_of(out: Path) -> dict[str, tuple[str, ...]]:
    with Shards.open(out) as shards:
        return {clip.source: clip.captions + clip.synthetic_captions for clip in map(shards.clip, range(len(shards)))}


def skipped(out: Path) -> dict[str, str]:
    return {row.file: row.reason for row in read_report(out) if row.status == "skipped"}


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_json_beside_the_audio_is_read(tmp_path: Path) -> None:
    extra = {"tag": ["dog"], "original_data": {"title": "x", "license": "cc0"}}
    corpus = put(
        tmp_path / "corpus",
        {
            "a/1.flac": sound(),
            "a/1.json": json.dumps({"text": "a dog", **extra}).encode(),
            "a/2.wav": sound("wav"),
            "a/2.json": json.dumps({"text": ["a cat ", "größe", ""], **extra}).encode(),
            "b/alone.flac": sound(),
            "b/list.flac": sound(),
            "b/list.json": b'["a"]',
            "b/blank.flac": sound(),
            "b/blank.json": b'{"text": [" "]}',
            "b/number.flac": sound(),
            "b/number.json": b'{"text": [1]}',
            "b/none.flac": sound(),
            "b/none.json": b'{"text": []}',
            "b/surrogate.flac": sound(),
            "b/surrogate.json": b'{"text": "\\ud800"}',
        },
    )
    report = pack(corpus, tmp_path / "out")
    assert report.layout.startswith("laion")
    assert captions_of(tmp_path / "out") == {"a/1.flac": ("a dog",), "a/2.wav": ("a cat", "größe")}
    no_text = "json file that is no object with text"
    assert skipped(tmp_path / "out") == {
        "b/alone.flac": "no json file with captions",
        "b/list.flac": no_text,
        "b/blank.flac": "empty caption",
        "b/number.flac": no_text,
        "b/none.flac": no_text,
        "b/surrogate.flac": "caption that is not Unicode text",
    }
    assert report.warnings == {"empty caption": 1}


def test_bombs_are_refused_by_their_bounds(tmp_path: Path) -> None:
    bombs = {
        "deep": b"[" * 500_000,
        "long": json.dumps({"text": "x" * 10_001}).encode(),
        "many": json.dumps({"text": ["x" * 9_000] * 12}).encode(),
        "large": json.dumps({"text": "x", "original_data": "x" * (1 << 20)}).encode(),
    }
    files = {f"{name}.flac": sound() for name in bombs} | {f"{name}.json": data for name, data in bombs.items()}
    corpus = put(tmp_path / "corpus", files)
    with (put(corpus, {"huge.flac": sound()}) / "huge.json").open("wb") as file:
        file.write(b'{"text": "')
        file.truncate(1 << 32)  # a hole: four gigabytes that no disk has to hold
    os.mkfifo(corpus / "pipe.json")
    put(corpus, {"pipe.flac": sound()})
    report = pack(corpus, tmp_path / "out", workers=1)
    large = "json file over 1048576 bytes"
    assert skipped(tmp_path / "out") == {
        "deep.flac": "json file that is no object with text",
        "huge.flac": large,
        "large.flac": large,
        "long.flac": "caption over 10000 characters",
        "pipe.flac": "file cannot be opened",
    }
    assert report.warnings == {"captions of one file over 100000 characters together": 1}
    with Shards.open(tmp_path / "out") as shards:
        assert len(shards.clip(0).captions) == 11


def test_tars_are_read_in_place_and_nothing_leaves_them(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with tarfile.open(tmp_path / "corpus" / "0.tar", "w") as tar:

        def add(name: str, data: bytes = b"", **values: Any) -> None:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            for key, value in values.items():
                setattr(header, key, value)
            tar.addfile(header, io.BytesIO(data))

        for name in ("x/1", "../../evil", "2"):
            add(f"{name}.flac", sound())
            add(f"{name}.json", json.dumps({"text": f"caption {name}"}).encode())
        add("3.flac", sound()[:-9_000])
        add("3.json", b'{"text": "cut"}')
        add("4.wav", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    put(tmp_path / "corpus", {"broken.tar": b"no tar"})
    report = pack(tmp_path / "corpus", tmp_path / "out")
    assert captions_of(tmp_path / "out") == {"0.tar/2.flac": ("caption 2",), "0.tar/x/1.flac": ("caption x/1",)}
    escapes = "tar member whose path leaves the folder"
    assert skipped(tmp_path / "out") == {
        "0.tar/../../evil.flac": escapes,
        "0.tar/../../evil.json": escapes,
        "0.tar/3.flac": "truncated or damaged",
        "0.tar/4.wav": "tar member that is a link or another special file",
        "broken.tar": "damaged tar: what follows cannot be read",
    }
    assert report.kept == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"]


def wavcaps(path: Path, *entries: Any) -> Path:
    path.write_text(json.dumps({"num_captions_per_audio": 1, "data": entries}))
    return path


def test_wavcaps_ids_find_their_files(tmp_path: Path) -> None:
    names = ("sub/12.flac", "Yb0.wav.flac", "33.wav", "exact.wav", "uncaptioned.flac")
    corpus = put(tmp_path / "corpus", {name: sound("wav" if name.endswith("wav") else "flac") for name in names})
    table = wavcaps(
        tmp_path / "fsd_final.json",
        {"id": "12", "caption": "Rain.", "duration": 1.1, "href": "x", "tags": []},
        {"id": "Yb0.wav", "caption": "Speech.", "duration": 1.1},
        {"id": 33, "caption": ["one", "two"], "synthetic": True},
        {"id": "exact.flac", "caption": "other extension"},
        {"id": "gone", "caption": "x"},
        {"audio": "../../evil.wav", "caption": "x"},
    )
    report = pack(corpus, tmp_path / "out", captions=table)
    assert report.layout.startswith("wavcaps")
    assert captions_of(tmp_path / "out") == {
        "sub/12.flac": ("Rain.",),
        "Yb0.wav.flac": ("Speech.",),
        "33.wav": ("one", "two"),
        "exact.wav": ("other extension",),
    }
    assert skipped(tmp_path / "out") == {
        "uncaptioned.flac": "file without caption",
        "gone": "caption for a missing file",
        "../../evil.wav": "path outside the folder",
    }
    with Shards.open(tmp_path / "out") as shards:
        assert {shards.clip(i).source for i in range(len(shards)) if shards.clip(i).synthetic_captions} == {"33.wav"}


def test_an_id_of_two_files_is_refused(tmp_path: Path) -> None:
    corpus = put(tmp_path / "corpus", {"a/12.flac": sound(), "b/12.flac": sound()})
    with pytest.raises(InputError, match=r"id '12' fits a/12\.flac and b/12\.flac; .*merge"):
        pack(corpus, tmp_path / "out", captions=wavcaps(tmp_path / "c.json", {"id": "12", "caption": "x"}))
    table = wavcaps(tmp_path / "c.json", {"id": "a/12.flac", "caption": "x"}, {"id": "b/12", "caption": "y"})
    report = pack(corpus, tmp_path / "out", captions=table)
    assert (report.kept, report.skipped["file without caption"]) == (1, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "cannot be read as JSON"),
        (b"[" * 200_000, "cannot be read as JSON"),
        (b"[]", "no list called data"),
        (b'{"data": {}}', "no list called data"),
        (b'{"data": [1]}', "entry 0: a int"),
        (b'{"data": [{"caption": "x"}]}', "entry 0: no id"),
        (b'{"data": [{"id": "1"}]}', "entry 0: caption is neither"),
        (b'{"data": [{"id": "1", "caption": "x", "synthetic": "yes"}]}', "synthetic is 'yes'"),
    ],
)
def test_other_json_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    corpus = put(tmp_path / "corpus", {"1.flac": sound()})
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        pack(corpus, tmp_path / "out", captions=tmp_path / "c.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["c.json", "c.csv"])
def test_a_captions_file_of_a_gigabyte_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_module, "MAX_FILE_BYTES", 1_000)
    corpus = put(tmp_path / "corpus", {"1.flac": sound()})
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match=r"over 1000 bytes; divide the corpus.*merge"):
        pack(corpus, tmp_path / "out", captions=tmp_path / name)


def test_layout_and_captions_must_go_together(tmp_path: Path) -> None:
    corpus = put(
        tmp_path / "corpus", {"1.flac": sound(), "1.json": b'{"text": "x"}', "c.csv": b"file,caption\n1.flac,y"}
    )
    with pytest.raises(InputError, match="leave out --captions"):
        pack(corpus, tmp_path / "out", layout="laion", captions=corpus / "c.csv")
    with pytest.raises(InputError, match="name it with --captions"):
        pack(corpus, tmp_path / "out", layout="wavcaps")
    pack(corpus, tmp_path / "out", captions=corpus / "c.csv")
    pack(corpus, tmp_path / "mute", layout="csv")
    assert captions_of(tmp_path / "out") == {"1.flac": ("y",)}
    assert captions_of(tmp_path / "mute") == {"1.flac": ()}
