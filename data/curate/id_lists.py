"""Ids of evaluation clips: the tables of the datasets, WavCaps' blacklists, manifests, or an id a line."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...errors import InputError
from ..captions import read_bounded
from .clip_ids import Namespace, YouTubeId, freesound_id, youtube_id
from .manifest import Row

CLIP_SECONDS = 10.0
"""Length of a YouTube clip of which only the start is known: AudioCaps, AudioSet and VGGSound cut ten seconds."""

_FREESOUND_COLUMNS = ("src_file", "fsid", "sound_id", "fname", "freesound_id", "id")
"""ESC-50, UrbanSound8K, Clotho and FSD50K, in this order."""
_YOUTUBE_COLUMNS = ("youtube_id", "ytid", "id")
_SPLITS = ("train", "test")
_BLACKLIST = 'expected {"AudioSet": [ids], "FreeSound": [ids]}'


@dataclass
class EvaluationIds:
    """Ids that no training clip may have, each with the place where it stands."""

    freesound: dict[str, str] = field(default_factory=dict)
    youtube: dict[str, list[tuple[YouTubeId, str]]] = field(default_factory=dict)
    """By video; a video may be listed with several parts."""
    unknown: int = 0
    """Ids of blacklists that belong to other collections, which are not matched."""

    def add_freesound(self, number: str, where: str) -> None:
        """Add one id in normal form."""
        self.freesound.setdefault(number, where)

    def add_youtube(self, clip: YouTubeId, where: str) -> None:
        """Add one id in normal form."""
        self.youtube.setdefault(clip.video, []).append((clip, where))

    def digest(self) -> str:
        """SHA-256 of all ids, hexadecimal."""
        return hashlib.sha256(json.dumps([self.freesound, self.youtube]).encode()).hexdigest()

    def add_rows(self, name: str, rows: Iterable[Row], namespaces: Mapping[str, Namespace]) -> None:
        """Add the ids of a manifest of evaluation clips, of the sources whose namespace is known."""
        for row in rows:
            for kind, found in _normal_ids(row, namespaces):
                if isinstance(found, YouTubeId):
                    self.add_youtube(found, f"{name}: {row['source']} {kind}")
                else:
                    self.add_freesound(found, f"{name}: {row['source']} {kind}")

    def find(self, row: Row, namespaces: Mapping[str, Namespace], *, windows: bool) -> str | None:
        """Where the id of `row` is listed, or None.

        A YouTube clip matches by its video; with `windows` only if the listed part and that of the clip have time in
        common, where both are known.
        """
        for _, found in _normal_ids(row, namespaces):
            if isinstance(found, YouTubeId):
                for listed, where in self.youtube.get(found.video, []):
                    if not windows or _share_time(listed, found, row["seconds"]):
                        return where
            elif where := self.freesound.get(found):
                return where
        return None


def _normal_ids(row: Row, namespaces: Mapping[str, Namespace]) -> Iterator[tuple[str, str | YouTubeId]]:
    namespace = namespaces.get(row["source"].lower(), "none")
    if namespace in ("youtube", "both") and (clip := youtube_id(row["id"])):
        yield row["id"], clip
    if namespace in ("freesound", "both") and (number := freesound_id(row["id"])):
        yield row["id"], number


def _share_time(listed: YouTubeId, clip: YouTubeId, seconds: float) -> bool:
    if listed.start is None or clip.start is None:
        return True
    listed_end = listed.start + CLIP_SECONDS if listed.end is None else listed.end
    end = clip.start + seconds if clip.end is None else clip.end
    return listed.start < end and clip.start < listed_end


def read_id_list(path: Path, namespace: Literal["freesound", "youtube"], ids: EvaluationIds) -> int:
    """Add the ids of a csv or of a list with an id a line to `ids`; returns how many there were.

    Freesound: esc50.csv (`src_file`), UrbanSound8K.csv (`fsID`), Clotho's metadata (`sound_id`, or the number in
    `sound_link`), FSD50K's ground truth (`fname`). YouTube: AudioCaps (`youtube_id`, `start_time`), AudioSet's segments
    (`YTID, start_seconds, end_seconds` in a comment), VGGSound (no header; of rows with a split, those of `test`).

    Raises `InputError` that names the line where a file is of another form or holds no id.
    """
    before = _size(ids)
    lines = list(_rows(path))
    header = _header(lines, namespace)
    if header is not None:
        rows = [(number, dict(zip(header, fields, strict=False))) for number, fields in lines[1:]]
        _add_table(path, rows, namespace, ids)
    elif namespace == "youtube":
        _add_youtube_lines(path, lines, ids)
    else:
        for number, fields in lines:
            found = freesound_id(fields[0]) if len(fields) == 1 else None
            if found is None:
                raise _wrong(path, number, fields, "a Freesound id, or a first line that names its column")
            ids.add_freesound(found, f"{path.name} line {number}")
    if _size(ids) == before:
        raise InputError(f"{path}: holds no id; expected a table of a dataset, or an id a line")
    return _size(ids) - before


def read_blacklist(path: Path, ids: EvaluationIds) -> int:
    """Add the ids of one of WavCaps' blacklists, a json of lists by collection, to `ids`; returns how many there were.

    Raises `InputError` where it is of another form.
    """
    try:
        content = json.loads(read_bounded(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); {_BLACKLIST}") from error
    if not isinstance(content, dict) or not {"AudioSet", "FreeSound"} & content.keys():
        raise InputError(f"{path}: names neither AudioSet nor FreeSound; {_BLACKLIST}")
    before = _size(ids)
    for collection, entries in content.items():
        if not isinstance(entries, list):
            raise InputError(f"{path}: {collection!r:.40} is a {type(entries).__name__}; {_BLACKLIST}")
        for number, entry in enumerate(entries):
            where = f"{path.name} {collection} {number}"
            text = str(entry) if isinstance(entry, str | int) else ""
            if collection == "AudioSet" and (clip := youtube_id(text)):
                ids.add_youtube(clip, where)
            elif collection == "FreeSound" and (sound := freesound_id(text)):
                ids.add_freesound(sound, where)
            elif collection in ("AudioSet", "FreeSound"):
                raise InputError(f"{path}, {collection}, entry {number}: {entry!r:.60} is no id of it; {_BLACKLIST}")
            else:
                ids.unknown += 1
    return _size(ids) - before


def _size(ids: EvaluationIds) -> int:
    return len(ids.freesound) + sum(map(len, ids.youtube.values()))


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line that is not empty; a comment only if it names AudioSet's columns."""
    data = read_bounded(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # Clotho's metadata; the columns that are read here are ASCII
    if "\0" in text:
        raise InputError(f"{path}: holds zero bytes; expected text, an id a line or csv")
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        for fields in reader:
            fields = [field.strip() for field in fields]
            if fields and fields[0].startswith("#"):
                fields[0] = fields[0].lstrip("# ")
                if fields[0].lower() not in _YOUTUBE_COLUMNS:
                    continue
            if any(fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; expected plain csv or an id a line") from error


def _header(lines: Sequence[tuple[int, list[str]]], namespace: str) -> list[str] | None:
    """The names of the columns in lower case, where the first line is one of names."""
    if not lines:
        return None
    names = [name.lower() for name in lines[0][1]]
    known = _FREESOUND_COLUMNS if namespace == "freesound" else _YOUTUBE_COLUMNS
    return names if set(names) & set(known) else None


def _add_table(path: Path, rows: list[tuple[int, dict[str, str]]], namespace: str, ids: EvaluationIds) -> None:
    for number, row in rows:
        where = f"{path.name} line {number}"
        if namespace == "youtube":
            text = next(row[name] for name in _YOUTUBE_COLUMNS if name in row)
            clip = youtube_id(text)
            if clip is None:
                raise _wrong(path, number, [text], "a YouTube id")
            start = _seconds(path, number, row, ("start_time", "start_seconds", "start"))
            end = _seconds(path, number, row, ("end_time", "end_seconds", "end"))
            ids.add_youtube(clip if start is None else YouTubeId(clip.video, start, end), where)
        else:
            text = next((row[name] for name in _FREESOUND_COLUMNS if name in row), "")
            found = freesound_id(text) or freesound_id(row.get("sound_link", ""))
            if found is None and text.lower() == "not found":  # Clotho says so of a few
                continue
            if found is None:
                raise _wrong(path, number, [text], "a Freesound id")
            ids.add_freesound(found, where)


def _add_youtube_lines(path: Path, lines: list[tuple[int, list[str]]], ids: EvaluationIds) -> None:
    for number, fields in lines:
        clip = youtube_id(fields[0])
        if clip is None:
            raise _wrong(path, number, fields, "a YouTube id, or a first line that names its column")
        if fields[-1] in _SPLITS and fields[-1] != "test":  # VGGSound lists both splits in one file
            continue
        named = {"start": fields[1], "end": fields[2]} if len(fields) > 1 and _is_number(fields[1:3]) else {}
        if len(fields) > 1 and not named:
            named = {"start": fields[1]}
        start = _seconds(path, number, named, ("start",))
        end = _seconds(path, number, named, ("end",))
        ids.add_youtube(clip if start is None else YouTubeId(clip.video, start, end), f"{path.name} line {number}")


def _is_number(fields: Sequence[str]) -> bool:
    return len(fields) == 2 and all(field.replace(".", "", 1).isdecimal() for field in fields)


def _seconds(path: Path, number: int, row: Mapping[str, str], names: Sequence[str]) -> float | None:
    text = next((row[name] for name in names if name in row), "")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{path}, line {number}: {text!r:.40} is no time; expected seconds") from None


def _wrong(path: Path, number: int, fields: Sequence[str], expected: str) -> InputError:
    return InputError(f"{path}, line {number}: {','.join(fields)!r:.60} is not what was expected here: {expected}")
