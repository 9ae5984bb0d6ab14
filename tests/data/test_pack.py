"""Packing a corpus: what is kept, what is skipped and why, and that interruption and processes change no byte."""

import csv
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from cacophony.data import pack as pack_module
from cacophony.data.audio import UNREAD
from cacophony.data.pack import pack
from cacophony.data.shards import Shards
from cacophony.errors import InputError
from cacophony.file_lock import locked


def sound(path: Path, seconds: float = 1.1, rate: int = 16_000, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.random.default_rng(seed).uniform(-0.3, 0.3, round(rate * seconds)), rate)
    return path


def captions(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "captions.csv"
    path.write_text("\n".join(["file,caption", *lines]), encoding="utf-8")
    return path


def report(out: Path) -> dict[str, list[tuple[str, str]]]:
    rows: dict[str, list[tuple[str, str]]] = {}
    with (out / "report.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert list(row) == ["file", "status", "reason", "key", "seconds"]
            rows.setdefault(row["file"], []).append((row["status"], row["reason"]))
    return rows


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for i in range(11):
        sound(tmp_path / "audio" / f"{i:02}.wav", 1 + i / 20, (16_000, 22_050, 44_100)[i % 3], i)
    sound(tmp_path / "audio" / "04b.wav", 0.5)
    return tmp_path / "audio"


def test_all_extensions_and_folders_are_found(tmp_path: Path) -> None:
    names = ["a.wav", "b/B.FLAC", "b/ä ö.ogg", "b/c/d.oga", "e.opus", "f.MP3", "g.aif", "g.aiff", "日本.wav"]
    kinds = {"oga": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "aif": ("AIFF", None), "MP3": ("MP3", None)}
    for name in names:
        path = tmp_path / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        form, subtype = kinds.get(name.rpartition(".")[2], (None, None))
        sf.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 48_000), 48_000, format=form, subtype=subtype)
    (tmp_path / "audio" / "notes.txt").write_text("no audio")
    (tmp_path / "audio" / "b" / "circle").symlink_to(tmp_path / "audio", target_is_directory=True)
    result = pack(tmp_path / "audio", tmp_path / "deep" / "out")
    with Shards.open(tmp_path / "deep" / "out") as shards:
        assert [shards.clip(i).source for i in range(len(shards))] == sorted(names)
        assert all(shards.clip(i).samples == 16_000 == len(shards.read(i)) for i in range(len(shards)))
        assert all(shards.clip(i).key.isascii() for i in range(len(shards)))
    assert (result.kept, result.skipped, result.seconds) == (len(names), {}, len(names))
    assert not (tmp_path / "deep" / ".out.packing").exists()


def test_a_folder_that_links_lead_to_is_packed_once_under_its_own_name(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "v1" / "deep" / "a.wav")
    sound(tmp_path / "elsewhere" / "b.wav")
    for link, target in {"latest": "audio/v1", "deep": "audio/v1/deep", "x": "elsewhere", "y": "elsewhere"}.items():
        (tmp_path / "audio" / link).symlink_to(tmp_path / target, target_is_directory=True)
    pack(tmp_path / "audio", tmp_path / "out", captions=captions(tmp_path, "v1/deep/a.wav,one", "x/b.wav,two"))
    assert report(tmp_path / "out") == {"v1/deep/a.wav": [("kept", "")], "x/b.wav": [("kept", "")]}


def test_captions_find_their_files_in_any_unicode_form(tmp_path: Path) -> None:
    nfc, nfd = unicodedata.normalize("NFC", "é.wav"), unicodedata.normalize("NFD", "ü.wav")
    sound(tmp_path / "audio" / "x" / nfc)
    sound(tmp_path / "audio" / nfd)
    (tmp_path / "audio" / "odd.snd").write_bytes(sound(tmp_path / "audio" / "a.wav").read_bytes())
    table = captions(
        tmp_path,
        f"x\\{unicodedata.normalize('NFD', nfc)},first",
        f"x/{nfc},second",
        f"{unicodedata.normalize('NFC', nfd)},third",
        "odd.snd,fourth",
        "a.wav,fifth",
    )
    pack(tmp_path / "audio", tmp_path / "out", captions=table, strict=True)
    with Shards.open(tmp_path / "out") as shards:
        found = {clip.source: clip.captions for clip in map(shards.clip, range(len(shards)))}
    assert found == {f"x/{nfc}": ("first", "second"), nfd: ("third",), "odd.snd": ("fourth",), "a.wav": ("fifth",)}


def test_every_defect_is_skipped_counted_and_named(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    sound(audio / "good.wav")
    sound(audio / "uncaptioned.wav")
    sound(audio / "blank.wav")
    sound(audio / "half blank.wav")
    sound(audio / "short.wav", 0.99)
    sound(audio / "long.wav", 300.01, 1_000)
    cut = sound(audio / "cut.wav")
    cut.write_bytes(cut.read_bytes()[:-4_000])
    sound(audio / "silent.wav", 0)
    (audio / "empty.wav").touch()
    (audio / "page.ogg").write_text("<html>")
    sf.write(audio / "nan.wav", np.full(20_000, np.nan), 16_000, subtype="FLOAT")
    sound(tmp_path / "secret.wav")
    names = ["good", "half blank", "short", "long", "cut", "silent", "empty", "nan", "gone"]
    table = captions(
        tmp_path,
        *(f"{name}.wav,text" for name in names),
        "page.ogg,x",
        "blank.wav, ",
        "half blank.wav,",
        "../secret.wav,x",
    )
    result = pack(audio, tmp_path / "out", captions=table)
    expected = {
        "../secret.wav": [("skipped", "path outside the folder")],
        "blank.wav": [("skipped", "empty caption")],
        "cut.wav": [("skipped", "truncated or damaged")],
        "empty.wav": [("skipped", "empty file (0 bytes)")],
        "gone.wav": [("skipped", "caption for a missing file")],
        "good.wav": [("kept", "")],
        "half blank.wav": [("warning", "empty caption"), ("kept", "")],
        "long.wav": [("skipped", "too long")],
        "nan.wav": [("skipped", "NaN or infinite samples")],
        "page.ogg": [("skipped", "not an audio file libsndfile can read")],
        "short.wav": [("skipped", "too short")],
        "silent.wav": [("skipped", "no samples")],
        "uncaptioned.wav": [("skipped", "file without caption")],
    }
    assert report(tmp_path / "out") == expected
    assert result.kept == 2
    assert sum(result.skipped.values()) == 11
    assert result.warnings == {"empty caption": 1}
    text = "\n".join(result.summary())
    assert "kept 2 clips" in text
    assert "skipped 1: too long" in text
    assert str(tmp_path / "out" / "report.csv") in text


def test_audio_that_libsndfile_cannot_read_is_named(corpus: Path, tmp_path: Path) -> None:
    for name in ("a.m4a", "b.AAC"):
        (corpus / name).write_bytes(b"some codec")
    (corpus / "c.mp4").write_bytes(b"a film")
    packed = pack(corpus, tmp_path / "out", clips_per_shard=2)
    assert packed.skipped[UNREAD] == 2
    assert report(tmp_path / "out")["a.m4a"] == [("skipped", UNREAD)]
    assert "c.mp4" not in report(tmp_path / "out")


def test_strict_ends_at_the_first_defect_in_file_order(corpus: Path, tmp_path: Path) -> None:
    (corpus / "07.wav").write_text("no audio")
    with pytest.raises(InputError, match=r"04b\.wav: too short") as caught:
        pack(corpus, tmp_path / "out", strict=True, clips_per_shard=2)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["audio"]


@pytest.mark.parametrize("line", ["gone.wav,x", "00.wav,", "../00.wav,x"])
def test_strict_ends_at_defects_of_the_captions(tmp_path: Path, line: str) -> None:
    sound(tmp_path / "audio" / "00.wav")
    with pytest.raises(InputError, match=r"strict"):
        pack(tmp_path / "audio", tmp_path / "out", captions=captions(tmp_path, "00.wav,x", line), strict=True)
    assert not (tmp_path / "out").exists()


def test_the_bytes_do_not_depend_on_the_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    for workers in (1, 2, 5):
        pack(corpus, tmp_path / f"out{workers}", workers=workers, clips_per_shard=4)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2") == contents(tmp_path / "out5")


PACK = "import sys; from cacophony.data.pack import pack; pack(sys.argv[1], sys.argv[2], workers=2, clips_per_shard=2)"


def kill_when(arguments: list[str], condition: Callable[[], bool]) -> None:
    """Start packing in a process of its own and end it, with no chance to clean up, when the condition holds."""
    process = subprocess.Popen([sys.executable, "-c", PACK, *arguments])
    while process.poll() is None and not condition():
        time.sleep(0.002)
    process.kill()
    process.wait()


@pytest.mark.parametrize("records", [0, 1, 4])
def test_killed_packing_continues_to_the_same_bytes(corpus: Path, tmp_path: Path, records: int) -> None:
    pack(corpus, tmp_path / "whole", clips_per_shard=2)
    work = tmp_path / ".out.packing"

    def reached() -> bool:
        return (work / "plan.json").exists() and len(list((work / "ranges").glob("*.json"))) >= records

    kill_when([str(corpus), str(tmp_path / "out")], reached)
    assert not (tmp_path / "out").exists()
    (work / "scratch" / "left behind").touch()
    (work / "shards" / "shard-000005.tar.tmp").write_bytes(b"half")
    pack(corpus, tmp_path / "out", workers=1, clips_per_shard=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not work.exists()


def interrupt(monkeypatch: pytest.MonkeyPatch, at_record: str) -> None:
    """Make packing end by Ctrl-C just before it records this range."""
    write = pack_module.write_atomically

    def interrupted(path: Path, data: bytes) -> None:
        if path.name == at_record:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(pack_module, "write_atomically", interrupted)


def test_what_is_recorded_is_not_done_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "000004.json")
        with pytest.raises(KeyboardInterrupt):
            pack(corpus, tmp_path / "out", workers=2, clips_per_shard=2)
    work = tmp_path / ".out.packing"
    kept = {path: path.stat().st_mtime_ns for path in (work / "ranges").iterdir()}
    assert len(kept) == 4
    with monkeypatch.context() as patch:
        interrupt(patch, "000005.json")
        with pytest.raises(KeyboardInterrupt):
            pack(corpus, tmp_path / "out", workers=2, clips_per_shard=2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list((work / "ranges").iterdir())) == 5


def test_one_process_at_a_time_packs_and_a_second_spoils_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "000004.json")
        with pytest.raises(KeyboardInterrupt):
            pack(corpus, tmp_path / "out", workers=2, clips_per_shard=2)
    work = tmp_path / ".out.packing"
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    with locked(work, "packing"), pytest.raises(InputError, match="another process is packing there"):
        pack(corpus, tmp_path / "out", workers=1, clips_per_shard=3)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before
    assert pack(corpus, tmp_path / "out", workers=1, clips_per_shard=3).kept == len(Shards.open(tmp_path / "out"))


def test_packing_killed_in_its_last_moment_is_finished(corpus: Path, tmp_path: Path) -> None:
    (corpus / "07.wav").write_text("no audio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_module.shutil, "rmtree", lambda *_, **__: None)
        first = pack(corpus, tmp_path / "out", clips_per_shard=2)
    before = contents(tmp_path / "out")
    assert (tmp_path / ".out.packing").exists()
    assert pack(corpus, tmp_path / "out", clips_per_shard=2) == first
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / ".out.packing").exists()
    with pytest.raises(InputError, match="not empty"):
        pack(corpus, tmp_path / "out", clips_per_shard=2)


@pytest.mark.parametrize("change", ["file", "settings", "captions", "shard"])
def test_nothing_stale_is_continued(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "000004.json")
        with pytest.raises(KeyboardInterrupt):
            pack(corpus, tmp_path / "out", clips_per_shard=2)
    table, clips_per_shard = None, 2
    if change == "file":
        sound(corpus / "00.wav", 1.5)
    elif change == "settings":
        clips_per_shard = 3
    elif change == "captions":
        table = captions(tmp_path, *(f"{i:02}.wav,text {i}" for i in range(11)))
    else:
        (tmp_path / ".out.packing" / "shards" / "shard-000001.tar").write_bytes(b"half a shard")
    for name in ("out", "whole"):
        pack(corpus, tmp_path / name, captions=table, clips_per_shard=clips_per_shard)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_ranges_without_a_usable_file_leave_no_gap(tmp_path: Path) -> None:
    for i in range(6):
        sound(tmp_path / "audio" / f"{i}.wav", 0.2 if i in (0, 1, 4) else 1.0)
    pack(tmp_path / "audio", tmp_path / "out", clips_per_shard=2)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["shard-000000.tar", "shard-000001.tar"]
    with Shards.open(tmp_path / "out") as shards:
        assert [shards.clip(i).source for i in range(len(shards))] == ["2.wav", "3.wav", "5.wav"]


def test_an_empty_directory_may_be_the_target_and_a_full_one_may_not(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    pack(corpus, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="not empty"):
        pack(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_wrong_arguments_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: not a directory"):
        pack(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="workers is 0"):
        pack(corpus, tmp_path / "out", workers=0)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"no audio files; expected \.wav"):
        pack(tmp_path / "none", tmp_path / "out")
    sound(tmp_path / "none" / "a.wav", 0.1)
    with pytest.raises(InputError, match=r"none of 1 files is usable .*too short"):
        pack(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_do_not_go_where_packing_would_find_them_or_cannot_put_them(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(corpus, target_is_directory=True)
    for out in (corpus / "out", tmp_path / "link" / "deep" / "out"):
        with pytest.raises(InputError, match="lies in the folder that is packed"):
            pack(corpus, out)
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path / "disk")
    with pytest.raises(InputError, match="disk: is a mount point"):
        pack(corpus, tmp_path / "disk")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio", "disk", "link"]
    assert pack(corpus, tmp_path / "disk" / "out").kept == 11


def test_nothing_is_printed_without_a_terminal(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(corpus, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    pack(corpus, tmp_path / "shown")
    pack(corpus, tmp_path / "hidden", progress=False)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "12/12" in shown.err
    assert "files/s" in shown.err
