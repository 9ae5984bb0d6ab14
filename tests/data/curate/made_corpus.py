"""A made-up corpus for the curation's tests: five published layouts and an id list, damage, and planted overlaps.

    corpus = make_corpus(tmp_path / "corpus", 2_000, seed=0)

Everything is a function of the seed. Clips are one to two seconds at 8 kHz; all but the planted ones are hard links to
a few files, so that thousands of entries take a second. `rows` are what `cacophony curate ingest` makes of it.
"""

import base64
import csv
import json
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile as sf
import soxr
from cacophony.data.curate.manifest import (
    PART_ROWS,
    Manifest,
    Row,
    new_row,
    part_name,
    read_manifest,
    write_manifest,
    write_part,
)

RATE = 8_000
SHARED_FILES = 24
"""Distinct files behind the clips that are not planted."""
OVERLAPS_EACH = 3
SHARES = {"audiocaps": 0.1, "clotho": 0.1, "freesound": 0.4, "laion": 0.1, "wavcaps": 0.1, "acav": 0.2}
KINDS = {"audiocaps": "clean", "clotho": "clean", "laion": "clean", "freesound": "noisy", "wavcaps": "noisy"}
LICENCES = ("http://creativecommons.org/publicdomain/zero/1.0/", "http://creativecommons.org/licenses/by/4.0/", "")

How = Literal["id", "format", "rate", "reencode"]
HOWS: tuple[How, ...] = ("id", "format", "rate", "reencode")
Damage = Literal["missing", "empty", "not audio", "too short", "too long"]
DAMAGES: tuple[Damage, ...] = ("missing", "empty", "not audio", "too short", "too long")

_NOUNS = ("dog", "train", "river", "violin", "engine", "crowd", "hammer", "owl", "kettle", "thunder", "gate", "child")
_VERBS = ("barks", "passes", "roars", "plays", "starts", "cheers", "strikes", "calls", "whistles", "rolls", "creaks")
_PLACES = ("in a forest", "on a busy street", "inside a hall", "near the sea", "at night", "under a bridge")
_NOISE = (
    "Recorded with a Zoom H4n and edited in Audacity.",
    "File: {stem}_take3.wav, 24 bit 96 kHz.",
    "More at https://example.org/sounds/{stem} or mail me: someone@example.org",
    "Aufgenommen im Garten hinter dem Haus, bitte nennt meinen Namen.",
    "Please rate and comment!!! Free to use in your games and films.",
    "Tascam DR-40, low cut on, normalised to -3 dB.",
)


@dataclass(frozen=True)
class Overlap:
    """A clip of the corpus that is also one of the evaluation."""

    how: How
    """Same id and other audio; same samples as another format, at another rate; or coded anew, lossy and quieter."""
    source: str
    id: str
    """Of the clip in the corpus."""
    evaluation: str
    """The evaluation clip: an id in freesound.txt or youtube.txt, or a file name in `evaluation / "audio"`."""


@dataclass(frozen=True)
class MadeCorpus:
    """Where the corpus lies, and what a faultless pipeline finds in it."""

    folder: Path
    """audiocaps/, clotho/, freesound/, laion/, wavcaps/ and acav/, each as `_write_<name>` lays it out."""
    rows: list[Row] = field(default_factory=list)
    """The usable clips in the order of `SHARES`, each source in its own order."""
    damaged: dict[tuple[str, str], Damage] = field(default_factory=dict)
    """(source, id) of what is listed and cannot be used."""
    overlaps: list[Overlap] = field(default_factory=list)
    """All that `exclude` has to find; every other clip has to stay."""

    @property
    def evaluation(self) -> Path:
        """freesound.txt and youtube.txt, an id a line, and audio/ with clips of which a few are in the corpus."""
        return self.folder / "evaluation"

    def manifest(self, out: Path, rows_per_part: int = PART_ROWS) -> Manifest:
        """Write `rows` as a manifest without `ingest`."""
        out.mkdir(parents=True)
        starts = range(0, len(self.rows), rows_per_part)
        for number, start in enumerate(starts):
            write_part(out / part_name(number), self.rows[start : start + rows_per_part])
        write_manifest(out, "made", {}, map(part_name, range(len(starts))))
        return read_manifest(out)


@dataclass(frozen=True)
class _Entry:
    """A clip before it is written in its source's form."""

    id: str
    file: str
    title: str
    tags: list[str]
    texts: list[str]
    licence: str
    start: int
    damage: Damage | None


def make_corpus(folder: Path, entries: int = 200, seed: int = 0, damage: float = 0.05) -> MadeCorpus:
    """Write about `entries` entries, of which a share of `damage` cannot be used, into `folder`, which must not exist.

    At least 120 entries, so that every source has room for its overlaps.
    """
    if entries < 120:
        raise ValueError(f"entries is {entries}; expected at least 120")
    draw = random.Random(seed)
    corpus = MadeCorpus(folder)
    pool = _pool(folder / "pool", seed)
    for source, share in SHARES.items():
        made = [_entry(source, number, draw, damage) for number in range(round(entries * share))]
        where = _audio_folder(folder, source)
        where.mkdir(parents=True)
        for entry in made:
            _put(where / entry.file, pool[draw.randrange(len(pool))], entry.damage)
            if entry.damage:
                corpus.damaged[source, entry.id] = entry.damage
        _WRITERS[source](folder / source, made)
        corpus.rows.extend(_row(source, where / entry.file, entry) for entry in made if not entry.damage)
    _plant_overlaps(corpus, seed)
    for row in corpus.rows:
        row["seconds"] = sf.info(row["path"]).duration
    return corpus


def wave(seed: int, seconds: float = 1.5, rate: int = RATE) -> np.ndarray:
    """Float `[n]`: three tones with their own beats over noise that swells; other seeds sound unlike."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitches, beats = rng.uniform(200, 3_000, 3), rng.uniform(1, 9, 3)
    tones = [np.sin(2 * np.pi * f * t) * (1 + np.sin(2 * np.pi * b * t)) for f, b in zip(pitches, beats, strict=True)]
    swell = np.interp(t, np.linspace(0, seconds, 6), rng.uniform(0, 1, 6))
    return 0.1 * np.sum(tones, axis=0) + 0.15 * swell * rng.standard_normal(len(t)).clip(-3, 3) * 0.5


def _pool(folder: Path, seed: int) -> list[Path]:
    folder.mkdir(parents=True)
    lengths = np.random.default_rng(seed).uniform(1.05, 2.0, SHARED_FILES)
    paths = []
    for number, seconds in enumerate(lengths):
        paths.append(folder / f"{number}.wav")
        sf.write(paths[-1], wave(1_000 * seed + number, seconds), RATE, subtype="PCM_16")
    sf.write(folder / "too short.wav", wave(seed, 0.5), RATE, subtype="PCM_16")
    sf.write(folder / "too long.flac", np.zeros(301 * RATE), RATE, subtype="PCM_16")
    (folder / "not audio.wav").write_text("404: this is no audio\n" * 50)
    (folder / "empty.wav").write_bytes(b"")
    return paths


def _entry(source: str, number: int, draw: random.Random, damage: float) -> _Entry:
    noun, verb, place = draw.choice(_NOUNS), draw.choice(_VERBS), draw.choice(_PLACES)
    start = 10 * draw.randrange(30)
    hit = draw.choice(DAMAGES) if draw.random() < damage else None
    youtube = base64.urlsafe_b64encode(draw.randbytes(9)).decode()[:11]
    freesound = str(100_000 + 7 * number)
    id = {
        "audiocaps": f"{youtube}_{start}",
        "clotho": f"{noun} {number}.wav",
        "freesound": freesound,
        "laion": f"part/{number:05d}.wav",
        "wavcaps": freesound,
        "acav": f"{youtube}_{start}",
    }[source]
    file = {"clotho": id, "laion": f"{number:05d}.wav", "audiocaps": f"{youtube}.wav"}.get(source, f"{id}.wav")
    stem = f"{noun}_{number:04d}"
    caption = f"A {noun} {verb} {place}."
    if source in ("audiocaps", "laion"):
        texts = [f"{caption[:-1]}, {other}." for other in _PLACES[: draw.randint(1, 3)]]
    elif source == "clotho":
        texts = [f"{caption[:-1]} {count} times." for count in range(2, 7)]
    elif source == "acav":
        texts = []
    else:
        texts = [f"{caption} {draw.choice(_NOISE).format(stem=stem)}"]
    noisy = source in ("freesound", "wavcaps")
    return _Entry(
        id=id,
        file=file,
        title=f"{stem}.wav" if noisy else "",
        tags=[noun, place.split()[-1]] if source in ("freesound", "laion") else [],
        texts=texts,
        licence=draw.choice(LICENCES) if source in ("clotho", "freesound") else "",
        start=start,
        damage=hit,
    )


def _row(source: str, path: Path, entry: _Entry) -> Row:
    row = new_row(entry.id, source, KINDS.get(source, "unlabeled"), str(path), 0.0)  # pyright: ignore[reportArgumentType]
    row["title"], row["tags"], row["texts"], row["licence"] = entry.title, entry.tags, entry.texts, entry.licence
    return row


def _audio_folder(folder: Path, source: str) -> Path:
    return folder / source / {"audiocaps": "train", "clotho": "development", "laion": "part"}.get(source, "audio")


def _put(path: Path, shared: Path, damage: Damage | None) -> None:
    if damage == "missing":
        return
    suffix = ".flac" if damage == "too long" else ".wav"
    original = shared.with_name(f"{damage}{suffix}") if damage else shared
    try:
        os.link(original, path)
    except OSError:  # a file system without hard links
        shutil.copyfile(original, path)


def _write_audiocaps(folder: Path, entries: list[_Entry]) -> None:
    rows, number = [], 0
    for entry in entries:
        for text in entry.texts:
            rows.append([number, entry.id.rsplit("_", 1)[0], entry.start, text])
            number += 1
    _write_csv(folder / "train.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], rows)


def _write_clotho(folder: Path, entries: list[_Entry]) -> None:
    columns = ["file_name", *(f"caption_{n}" for n in range(1, 6))]
    _write_csv(folder / "clotho_captions_development.csv", columns, [[e.id, *e.texts] for e in entries])
    columns = ["file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license"]
    rows = [[e.id, "a;b", 500_000 + n, "", "[0, 9]", "größe", e.licence] for n, e in enumerate(entries)]
    _write_csv(folder / "clotho_metadata_development.csv", columns, rows, "latin-1")


def _write_freesound(folder: Path, entries: list[_Entry]) -> None:
    keys = [{"id": int(e.id), "title": e.title, "description": e.texts[0]} for e in entries]
    lines = [k | {"tags": e.tags, "license": e.licence} for k, e in zip(keys, entries, strict=True)]
    (folder / "meta.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")


def _write_laion(folder: Path, entries: list[_Entry]) -> None:
    for entry in entries:
        path = folder / entry.id.replace(".wav", ".json")
        path.write_text(json.dumps({"text": entry.texts, "tag": entry.tags}), "utf-8")


def _write_wavcaps(folder: Path, entries: list[_Entry]) -> None:
    data = [{"id": e.id, "title": e.title, "description": e.texts[0], "caption": "Something sounds."} for e in entries]
    (folder / "wavcaps.json").write_text(json.dumps({"num_captions_per_audio": 1, "data": data}), "utf-8")


def _write_acav(folder: Path, entries: list[_Entry]) -> None:
    rows = [[e.id.rsplit("_", 1)[0], e.start, e.start + 10] for e in entries]
    _write_csv(folder / "acav.csv", ["youtube_id", "start", "end"], rows)


_WRITERS = {
    "audiocaps": _write_audiocaps,
    "clotho": _write_clotho,
    "freesound": _write_freesound,
    "laion": _write_laion,
    "wavcaps": _write_wavcaps,
    "acav": _write_acav,
}


def _write_csv(path: Path, header: list[str], rows: list[list[Any]], encoding: str = "utf-8") -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _plant_overlaps(corpus: MadeCorpus, seed: int) -> None:
    """Give some clips audio of their own, and put ids, copies and copies of copies of them into the evaluation."""
    audio = corpus.evaluation / "audio"
    audio.mkdir(parents=True)
    ids: dict[str, list[str]] = {"freesound": ["999999"], "youtube": ["zzzzzzzzzzz"]}
    free = {source: iter([row for row in corpus.rows if row["source"] == source][::2]) for source in SHARES}
    for how in HOWS:
        for number in range(OVERLAPS_EACH):
            source = ("acav", "freesound", "wavcaps" if how != "id" else "acav")[number % 3]
            row = next(free[source])
            own = wave(77_000_000 + 100_000 * seed + 10 * number + HOWS.index(how), 1.2 + 0.2 * number)
            path = Path(row["path"])
            path.unlink()
            sf.write(path, own, RATE, subtype="PCM_16", format="WAV")
            stored, _ = sf.read(path, dtype="float32")
            name = f"{how} {number}"
            if how == "id":
                list_name = "freesound" if row["source"] == "freesound" else "youtube"
                name = row["id"] if list_name == "freesound" else row["id"][:11]
                ids[list_name].append(name)
            elif how == "format":
                name += (".flac", ".wav", ".aiff")[number % 3]
                sf.write(audio / name, stored, RATE, subtype="PCM_24" if number == 1 else "PCM_16")
            elif how == "rate":
                name += ".wav"
                rate = (16_000, 44_100, 48_000)[number % 3]
                sf.write(audio / name, soxr.resample(stored, RATE, rate, quality="VHQ"), rate, subtype="PCM_24")
            else:
                name += ".ogg"
                sf.write(audio / name, 0.8 * stored, RATE)
            corpus.overlaps.append(Overlap(how, row["source"], row["id"], name))
    for number in range(4):  # clips that are nowhere else
        sf.write(audio / f"other {number}.wav", wave(99_000_000 + number, 1.5), RATE, subtype="PCM_16")
    for name, listed in ids.items():
        (corpus.evaluation / f"{name}.txt").write_text("".join(f"{id}\n" for id in listed))
