"""Ingest: every usable clip once, every other named, whatever the files of others hold; kills change nothing."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from cacophony.data.curate import ingest as ingest_module
from cacophony.data.curate import listing
from cacophony.data.curate import parts as parts_module
from cacophony.data.curate.actors import Actors
from cacophony.data.curate.ingest import EXCLUSIONS_NAME, Exclusion, ingest, read_exclusions
from cacophony.data.curate.ingest_command import ingest_command, with_kinds
from cacophony.data.curate.listing import DUPLICATE
from cacophony.data.curate.manifest import Manifest, Row, read_manifest
from cacophony.data.curate.sources import records
from cacophony.data.curate.sources.entry import BAD_ID, NO_CAPTION, NO_DESCRIPTION
from cacophony.data.curate.sources.source import Source, make_source
from cacophony.engine.flags import command
from cacophony.errors import InputError, RunError

from .made_corpus import MadeCorpus, make_corpus

HERE = Actors(workers=0)
REASONS = {
    "missing": "no audio file",
    "empty": "empty file (0 bytes)",
    "not audio": "not an audio file libsndfile can read",
}


def sources_of(corpus: MadeCorpus) -> list[Source]:
    folder = corpus.folder
    return [
        make_source("audiocaps", folder / "audiocaps"),
        make_source("clotho", folder / "clotho"),
        make_source("freesound", folder / "freesound" / "audio", folder / "freesound" / "meta.jsonl"),
        make_source("laion", folder / "laion"),
        make_source("wavcaps", folder / "wavcaps" / "audio", folder / "wavcaps" / "wavcaps.json"),
        make_source("ids", folder / "acav" / "audio", folder / "acav" / "acav.csv"),
    ]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> MadeCorpus:
    return make_corpus(tmp_path_factory.mktemp("made") / "corpus", 400, seed=1)


@pytest.fixture(scope="module")
def ingested(corpus: MadeCorpus, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return ingest(sources_of(corpus), tmp_path_factory.mktemp("ingested") / "manifest", actors=HERE)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A folder with a second of sound for each of the ids 1 to 40."""
    folder = tmp_path / "audio"
    folder.mkdir()
    sf.write(folder / "1.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 8_800), 8_000)
    for number in range(2, 41):
        os.link(folder / "1.wav", folder / f"{number}.wav")
    return folder


def of_file(
    audio: Path, name: str, data: bytes, encoding: Any = "auto", out: str = "out"
) -> tuple[list[Row], list[Exclusion], dict[str, int]]:
    """What becomes of Freesound metadata with these bytes."""
    path = audio.parent / name
    path.write_bytes(data)
    manifest = ingest([make_source("freesound", audio, path, encoding=encoding)], audio.parent / out, actors=HERE)
    return list(manifest), list(read_exclusions(manifest.folder)), manifest.counts


def line(**values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


def test_every_usable_clip_is_there_as_published_and_every_other_is_named(
    corpus: MadeCorpus, ingested: Manifest
) -> None:
    excluded = {(row.source, row.id): row.reason for row in read_exclusions(ingested.folder)}

    assert list(ingested) == corpus.rows
    assert excluded == {key: REASONS.get(damage, damage) for key, damage in corpus.damaged.items()}
    assert ingested.counts == {"kept": len(corpus.rows)} | {
        f"excluded: {reason}": count for reason, count in Counter(excluded.values()).items()
    }


def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    corpus: MadeCorpus, ingested: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a part is written, a list of exclusions, the joint list, and before the directory gets its name."""
    monkeypatch.setattr("cacophony.data.curate.listing.PART_ROWS", 100)
    whole = ingest(sources_of(corpus), tmp_path / "whole", actors=HERE)
    out = tmp_path / "out"
    steps = [("write_part", 2), ("_write_exclusions", 3), ("atomic_file", 1)]
    for module, name, calls in [*((ingest_module, *step) for step in steps), (parts_module, "finish", 1)]:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, _dies(getattr(module, name), calls))
            with pytest.raises(KeyboardInterrupt):
                ingest(sources_of(corpus), out, actors=HERE)
        assert not out.exists()
    again = ingest(sources_of(corpus), out, actors=HERE)

    assert again.digest == whole.digest
    assert _bytes_of(out) == _bytes_of(whole.folder)
    assert list(again) == list(ingested)
    assert ingest(sources_of(corpus), out, actors=HERE).digest == whole.digest  # which is finished
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_kill_from_outside(corpus: MadeCorpus, ingested: Manifest, tmp_path: Path) -> None:
    out, unfinished = tmp_path / "manifest", tmp_path / ".manifest.curating"
    program = (
        "import sys; from pathlib import Path; from cacophony.data.curate import ingest, listing\n"
        "from cacophony.data.curate.actors import Actors\n"
        "from cacophony.data.curate.sources.source import make_source\n"
        "listing.PART_ROWS = 2\n"
        "ingest.ingest([make_source('laion', Path(sys.argv[1]))], Path(sys.argv[2]), actors=Actors(workers=0))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(corpus.folder / "laion"), str(out)])
    deadline = time.monotonic() + 60
    while not list(unfinished.glob("part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()

    subprocess.run([sys.executable, "-c", program, str(corpus.folder / "laion"), str(out)], check=True)
    assert list(read_manifest(out)) == [row for row in ingested if row["source"] == "laion"]


def test_a_decoder_that_crashes_costs_one_clip(audio: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crash = tmp_path / "crash" / "sitecustomize.py"
    crash.parent.mkdir()
    crash.write_text(
        "import os, signal, soundfile\n"
        "real = soundfile.SoundFile.__init__\n"
        "def init(self, file, *args, **values):\n"
        "    os.path.basename(str(file)) == '3.wav' and os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    real(self, file, *args, **values)\n"
        "soundfile.SoundFile.__init__ = init\n"
    )
    monkeypatch.setattr(sys, "path", [str(crash.parent), *sys.path])
    rows, excluded, _ = of_file(audio, "a.jsonl", b"".join(line(id=n, title="x") for n in range(1, 6)))

    assert [row["id"] for row in rows] == ["1", "2", "4", "5"]
    assert [(row.id, row.reason) for row in excluded] == [("3", "the decoder crashes on it")]


def test_lines_of_all_kinds(audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD", 1 << 21)
    data = [
        line(id=1, name="Wind", description=" Wind.\n", tags=["a", " b "], license="CC0"),
        b'{"id": 2, "title": "cut\n',
        b"[1, 2]\n\n",
        b"[" * 100_000 + b"\n",
        line(id=3, title="x" * 1_000_001),
        line(id=4, title="t", description="d" * 1_000_000),
        b'{"id": 5, "title": "' + b"y" * (1 << 21) + b'"}\n',
        line(id="../6", title="x"),
        line(id="a/7", title="x"),
        line(id="..", title="x"),
        line(id="C:\\8", title="x"),
        line(id="9\u0000", title="x"),
        line(title="x"),
        line(id=10, title="\ud800", description="fine"),
        line(id=11, description="\udfff"),
        line(id=12, description={"a": 1}, tags=[1, "b"]),
        line(id=1, title="again"),
        line(id=13),
        line(id=14, tags="rain, heavy rain"),
        line(id=15, tags=["rain", "roof", "x" * 101] + ["many"] * 300),
        '{"id": 16, "title": "größe"}\n'.encode("latin-1"),
        '{"id": 17, "title": "größe"}'.encode(),
    ]
    rows, excluded, counts = of_file(audio, "meta.jsonl", b"".join(data))

    assert {row["id"]: (row["title"], row["texts"], row["tags"], row["licence"]) for row in rows} == {
        "1": ("Wind", ["Wind."], ["a", "b"], "CC0"),
        "4": ("t", [], [], ""),
        "10": ("", ["fine"], [], ""),
        "12": ("", [], ["b"], ""),
        "14": ("", [], ["rain", "heavy rain"], ""),
        "15": ("", [], ["rain", "roof", *["many"] * 198], ""),
        "17": ("größe", [], [], ""),
    }
    assert [(row.id, row.reason, row.where.removeprefix("meta.jsonl, ")) for row in excluded] == [
        ("", records.NOT_AN_OBJECT, "line 2"),
        ("", records.NOT_AN_OBJECT, "line 3"),
        ("", records.NOT_AN_OBJECT, "line 5"),
        ("3", "title or licence over 1000 characters", "line 6"),
        ("", records.LARGE_RECORD, "line 8"),
        ("../6", BAD_ID, "line 9"),
        ("a/7", BAD_ID, "line 10"),
        ("..", BAD_ID, "line 11"),
        ("C:\\8", BAD_ID, "line 12"),
        ("9\ufffd", BAD_ID, "line 13"),
        ("", "no id", "line 14"),
        ("11", "caption that is not Unicode text", "line 16"),
        ("1", DUPLICATE, "line 18"),
        ("13", NO_DESCRIPTION, "line 19"),
        ("", records.NOT_ENCODED, "line 22"),
    ]
    assert {reason: count for reason, count in counts.items() if reason.startswith("dropped")} == {
        "dropped: caption over 10000 characters": 1,
        "dropped: caption that is not Unicode text": 1,
        "dropped: a text of another type": 2,
        "dropped: tag over 100 characters": 1,
        "dropped: more than 200 tags": 1,
    }


TEXT = "id,title,description\n1,größe,Ein Fluß.\n2,b,\n"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (TEXT.encode(), "auto"),
        (TEXT.encode("utf-8-sig"), "auto"),
        (TEXT.encode("utf-16"), "auto"),
        (TEXT.replace("\n", "\r\n").encode("utf-8-sig"), "utf-8"),
        (TEXT.encode("latin-1"), "latin-1"),
        (TEXT.encode("cp1252"), "cp1252"),
    ],
)
def test_encodings(audio: Path, data: bytes, encoding: str) -> None:
    rows, excluded, _ = of_file(audio, "meta.csv", data, encoding=encoding)

    assert [(row["title"], row["texts"]) for row in rows] == [("größe", ["Ein Fluß."]), ("b", [])]
    assert not excluded


def test_bytes_of_another_encoding_are_counted_and_never_guessed(audio: Path) -> None:
    rows, _, counts = of_file(audio, "meta.csv", TEXT.encode("latin-1"))

    assert [row["title"] for row in rows] == ["b"]
    assert counts["excluded: caption that is not Unicode text"] == 1
    with pytest.raises(InputError, match=r"is the file UTF-8\?"):  # UTF-16 without a mark
        of_file(audio, "wide.csv", TEXT.encode("utf-16-le"), out="wide")
    with pytest.raises(InputError, match="not utf-16"):
        of_file(audio, "half.jsonl", '{"id": 1, "title": "x"}'.encode("utf-16")[:-1], out="half")


def test_rows_of_a_damaged_csv(audio: Path) -> None:
    data = (
        'id,title\n1,"two\nlines"\n2,a,b\n3\n4,"quoted" badly\n5,ok\n6,' + "x" * 2_000_000 + '\n7,last\n8,"open\n9,in\n'
    )
    rows, excluded, _ = of_file(audio, "meta.csv", data.encode())

    assert [(row["id"], row["title"]) for row in rows] == [("1", "two\nlines"), ("5", "ok"), ("7", "last")]
    assert [(row.reason, row.where.removeprefix("meta.csv, ")) for row in excluded] == [
        (records.OTHER_FIELDS, "line 4"),
        (records.OTHER_FIELDS, "line 5"),
        (records.MALFORMED_ROW, "line 6"),
        ("title or licence over 1000 characters", "line 8"),
        (records.MALFORMED_ROW, "lines 10 to 11"),
    ]


def test_a_json_list_is_read_entry_by_entry(audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD", 200)  # many windows
    entries = [{"id": n, "title": f'{n} [{{"' + "é" * (n % 7)} for n in range(1, 41)]
    for number, text in enumerate((json.dumps(entries), json.dumps({"a": [1], "data": [7, *entries]}, indent=3))):
        path = audio.parent / f"{number}.json"
        path.write_text(text)
        manifest = ingest([make_source("freesound", audio, path)], audio.parent / f"out {number}", actors=HERE)
        assert [row["title"] for row in manifest] == [entry["title"] for entry in entries]
        assert manifest.counts.get("excluded: not a JSON object", 0) == number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1}, {"id": 2]', "no JSON at character 12"),
        ("[" + "[" * 100_000, "no JSON at character 1"),
        ('[{"id": 1, "title": "a"}', "expected ,"),
        ('{"data": 3}', "no list called data"),
        ('{"data" [', "expected :"),
        ('[{"id": 1, "title": "a"}]\n[{"id": 2, "title": "b"}]', "expected the end"),
        ('{"data": [{"id": 1, "title": "a"}], "n": 1}{"data": []}', "expected the end"),
        ('{"data": [{"id": 1, "title": "a"}], "n"', "expected :"),
        ("", "expected {"),
    ],
)
def test_a_json_that_is_none_is_refused_and_nothing_is_left(audio: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        of_file(audio, "meta.json", text.encode())
    assert sorted(path.name for path in audio.parent.iterdir()) == ["audio", "meta.json"]


def test_unlabeled_audio_may_have_any_json_beside_it(audio: Path) -> None:
    for number, text in enumerate(("[1]", '"rain"', "{", '{"original_data": {"license": "by"}}'), 1):
        (audio / f"{number}.json").write_text(text)
    manifest = ingest([make_source("laion", audio, kind="unlabeled")], audio.parent / "out", actors=HERE)
    assert [(row["id"], row["licence"]) for row in manifest] == [(f"{n}.wav", "by" * (n == 4)) for n in range(1, 5)]


def test_a_disk_that_is_full_while_listing_is_named(audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(listing.Seen, "add", full)
    with pytest.raises(RunError, match="database or disk is full; check the free space"):
        of_file(audio, "meta.jsonl", line(id="1", title="rain"))
    assert sorted(path.name for path in audio.parent.iterdir()) == ["audio", "meta.jsonl"]


def test_no_usable_clip_is_an_error_that_says_why(audio: Path) -> None:
    with pytest.raises(InputError, match=r"none of 2 entries is usable .*1 × excluded: no audio file"):
        of_file(audio, "meta.jsonl", line(id=99, title="x") + b"{\n")
    assert sorted(path.name for path in audio.parent.iterdir()) == ["audio", "meta.jsonl"]


def test_audio_is_found_by_id_in_any_folder_and_never_guessed(audio: Path) -> None:
    (audio / "deep").mkdir()
    os.link(audio / "1.wav", audio / "deep" / "100__user__title.flac")
    os.link(audio / "1.wav", audio / "deep" / "2.mp3")
    rows, excluded, _ = of_file(
        audio, "a.jsonl", line(id=100, title="x") + line(id=2, title="x") + line(id="1.wav", title="x")
    )

    assert [Path(row["path"]).relative_to(audio).as_posix() for row in rows] == ["deep/100__user__title.flac", "1.wav"]
    assert [(row.id, row.reason) for row in excluded] == [("2", "several audio files of that name")]


def test_audioset_lists_and_wavcaps_captions(audio: Path) -> None:
    os.link(audio / "1.wav", audio / "-abc_def_gh_30.wav")
    os.link(audio / "1.wav", audio / "Yxyz.wav")
    listed = audio.parent / "unbalanced.csv"
    listed.write_text(
        '# Segments, 3\n# YTID, start_seconds, end_seconds\n-abc_def_gh, 30.000, 40.000, "/m/0,/m/1"\nxyz, 0.5, 9\n'
    )
    wavcaps = audio.parent / "wc.json"
    data = [{"id": "5.flac", "caption": "Rain.", "description": "raw"}, {"id": "6", "caption": None}]
    wavcaps.write_text(json.dumps({"data": data}))
    sources = [make_source("ids", audio, listed), make_source("wavcaps", audio, wavcaps)]
    manifest = ingest(with_kinds(sources, ["wavcaps=clean"]), audio.parent / "out", actors=HERE)

    assert [(row["source"], row["id"], row["kind"], row["texts"]) for row in manifest] == [
        ("unbalanced", "-abc_def_gh_30", "unlabeled", []),
        ("unbalanced", "xyz_0.5", "unlabeled", []),
        ("wavcaps", "5.flac", "clean", ["Rain."]),
    ]
    assert manifest.counts[f"excluded: {NO_CAPTION}"] == 1
    for wrong in ("wavcaps=x", "nobody=clean", "wavcaps"):
        with pytest.raises(InputError, match="expected NAME=KIND"):
            with_kinds(sources, [wrong])


def test_flags_name_the_same_sources(
    corpus: MadeCorpus, ingested: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, toml = corpus.folder, tmp_path / "sources.toml"
    toml.write_text(f'[[source]]\nlayout = "audiocaps"\naudio = "{folder}/audiocaps"\nkind = "unlabeled"\n')
    argv = (
        f"--sources {toml} --clotho {folder}/clotho --freesound {folder}/freesound/meta.jsonl {folder}/freesound/audio"
    )
    argv += f" --laion {folder}/laion --wavcaps {folder}/wavcaps/wavcaps.json {folder}/wavcaps/audio"
    argv += f" --ids {folder}/acav/acav.csv {folder}/acav/audio --kind audiocaps=clean --out {tmp_path}/out"

    assert command(ingest_command, "ingest")(argv.split()) == 0
    assert list(read_manifest(tmp_path / "out")) == list(ingested)
    assert capsys.readouterr().out.startswith(f"{ingested.rows} clips, ")
    with pytest.raises(InputError, match="no source; name one"):
        command(ingest_command, "ingest")(["--out", f"{tmp_path}/other"])
    with pytest.raises(InputError, match="already there and not empty"):
        command(ingest_command, "ingest")(["--out", f"{tmp_path}", "--laion", f"{folder}/laion"])


def _dies(real: Any, calls: int) -> Any:
    """Do as `real`, and at the call with this number end as a process that is killed."""
    left = [calls]

    def call(*args: Any, **values: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(*args, **values)

    return call


def _bytes_of(folder: Path) -> dict[str, bytes]:
    assert (folder / EXCLUSIONS_NAME).is_file()
    return {path.name: path.read_bytes() for path in folder.iterdir()}
