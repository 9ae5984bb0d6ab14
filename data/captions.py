"""The captions file: which captions belong to which audio file."""

import csv
import hashlib
import io
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import InputError

MAX_FILE_BYTES = 1 << 29
"""Size of a captions file that is read (512 MiB, several million captions): it is held in memory."""
MAX_CHARACTERS = 10_000
"""Length of a caption that is packed."""
MAX_CLIP_CHARACTERS = 100_000
"""Length of all captions of a clip together."""

EMPTY_CAPTION = "empty caption"
LONG_CAPTION = f"caption over {MAX_CHARACTERS} characters"
MANY_CAPTIONS = f"captions of one file over {MAX_CLIP_CHARACTERS} characters together"
BAD_CAPTION = "caption that is not Unicode text"

_REQUIRED = ("file", "caption")
_SYNTHETIC = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """One caption of one audio file."""

    line: int
    """Line of the csv on which the row ends, from 1."""
    file: str
    """Path relative to the audio folder, as written."""
    caption: str
    """Text without surrounding white space; empty where the csv has none."""
    synthetic: bool
    """Whether a machine wrote the caption."""


@dataclass(frozen=True, slots=True)
class CaptionTable:
    """All rows of a captions file, in its order."""

    path: Path
    """Where the csv lies."""
    rows: tuple[CaptionRow, ...]
    """One entry per caption."""
    digest: str
    """SHA-256 of the csv's bytes, hexadecimal."""

    def by_file(self, on_disk: Iterable[str]) -> dict[str, list[CaptionRow]]:
        """Rows grouped by file: the name on disk where one matches, otherwise the name in normal form.

        Names match when they are equal, or equal in the form of `normal_name`.
        """
        exact = set(on_disk)
        normal: dict[str, str] = {}
        for name in sorted(exact):
            normal.setdefault(normal_name(name), name)
        groups: dict[str, list[CaptionRow]] = {}
        for row in self.rows:
            wanted = normal_name(row.file)
            name = row.file if row.file in exact else normal.get(wanted, wanted)
            groups.setdefault(name, []).append(row)
        return groups


class Captions(NamedTuple):
    """Captions of one clip, without those that cannot be used."""

    texts: tuple[str, ...]
    """In their order, without surrounding white space."""
    dropped: tuple[str, ...]
    """A reason for each that is missing."""


def usable_captions(texts: Iterable[str], room: int = MAX_CLIP_CHARACTERS) -> Captions:
    """The captions that may be packed, as long as there is `room` (characters) for them.

    The bounds keep the record of a clip small: every reader has to hold it in memory.
    """
    kept: list[str] = []
    dropped: list[str] = []
    for text in map(str.strip, texts):
        reason = _unusable(text, room)
        if reason:
            dropped.append(reason)
        else:
            room -= len(text)
            kept.append(text)
    return Captions(tuple(kept), tuple(dropped))


def _unusable(text: str, room: int) -> str:
    if not text:
        return EMPTY_CAPTION
    if len(text) > MAX_CHARACTERS:
        return LONG_CAPTION
    if len(text) > room:
        return MANY_CAPTIONS
    return "" if is_utf8(text) else BAD_CAPTION


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON and file systems also give strings with lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_bounded(path: Path) -> bytes:
    """The bytes of a captions file; raises `InputError` when it cannot be read or is over `MAX_FILE_BYTES`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"captions file {path}: {error.strerror}; expected a readable file") from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError(
            f"captions file {path}: over {MAX_FILE_BYTES} bytes; divide the corpus, pack the parts, merge the shards"
        )
    return data


def normal_name(name: str) -> str:
    r"""A relative path in the form in which names are compared: Unicode NFC, `/` for `\`, no `.` or doubled `/`."""
    return str(PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/")))


def leaves_folder(name: str) -> bool:
    r"""Whether a path is absolute (also `C:\...`) or climbs out of its folder through `..`."""
    path = PurePosixPath(normal_name(name))
    has_drive = len(name) > 1 and name[1] == ":" and name[0].isalpha()
    return path.is_absolute() or has_drive or ".." in path.parts


def read_captions(csv_path: str | os.PathLike[str]) -> CaptionTable:
    """Read a UTF-8 csv (a byte order mark is allowed) with the columns file, caption and, optionally, synthetic.

    Several rows for a file are several captions; `synthetic` is true/false/1/0/yes/no or empty. Raises `InputError`
    when the file cannot be read, is over `MAX_FILE_BYTES`, is not UTF-8, lacks a column, or has a malformed row.
    """
    path = Path(csv_path)
    data = read_bounded(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"captions file {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[CaptionRow] = []
    try:
        columns = _columns(path, next(reader, []))
        for fields in reader:
            if fields:
                rows.append(_row(path, reader.line_num, columns, fields))  # noqa: PERF401 - one row, one check
    except csv.Error as error:
        raise InputError(f"captions file {path}, line {reader.line_num}: {error}; expected plain csv") from error
    return CaptionTable(path, tuple(rows), hashlib.sha256(data).hexdigest())


def _columns(path: Path, header: list[str]) -> list[str]:
    columns = [name.strip().lower() for name in header]
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise InputError(
            f"captions file {path}: missing column {', '.join(missing)}; found {', '.join(columns) or 'none'}; "
            "expected file, caption and, optionally, synthetic in the first line"
        )
    doubled = sorted({name for name in columns if columns.count(name) > 1 and name in (*_REQUIRED, "synthetic")})
    if doubled:
        raise InputError(f"captions file {path}: column {', '.join(doubled)} occurs twice; keep one of them")
    return columns


def _row(path: Path, line: int, columns: list[str], fields: list[str]) -> CaptionRow:
    where = f"captions file {path}, line {line}"
    if len(fields) > len(columns):
        raise InputError(
            f"{where}: {len(fields)} fields, expected {len(columns)}; put captions that contain commas in double quotes"
        )
    values = dict(zip(columns, fields, strict=False))
    flag = values.get("synthetic", "").strip().lower()
    if flag not in _SYNTHETIC:
        raise InputError(f"{where}: synthetic is {flag[:40]!r}; expected true, false, 1, 0, yes, no or nothing")
    file = values.get("file", "").strip()
    if not file:
        raise InputError(f"{where}: the file column is empty; expected a path relative to the audio folder")
    return CaptionRow(line, file, values.get("caption", "").strip(), _SYNTHETIC[flag])
