"""Metadata files of others, record by record: csv, json lines, and the one long list of a json file.

A file is read as its byte order mark says (UTF-8 or UTF-16), and without one as UTF-8, unless its source names another
encoding. What the encoding does not allow, or is no record, is handed on with a `problem`: nothing is guessed. However
long the file is, no more than a few records are in memory.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TextIO, get_args

from ....errors import InputError
from ...audio import printable
from ...captions import is_utf8

MAX_RECORD = 1 << 22
"""Characters of a line, a csv row's field or a list's entry that is read: parsed, 4 MiB may take a hundred."""

Encoding = Literal["auto", "utf-8", "utf-16", "cp1252", "latin-1"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

NOT_AN_OBJECT = "not a JSON object"
LARGE_RECORD = f"record over {MAX_RECORD} characters"
NOT_ENCODED = "not text in the file's encoding"
MALFORMED_ROW = "malformed csv row"
OTHER_FIELDS = "csv row with more or fewer fields than the header"


class Record(NamedTuple):
    """What a file says of one clip."""

    where: str
    """File and line or entry."""
    values: dict[str, Any]
    """By column or key; names of columns in lower case."""
    problem: str = ""
    """Why `values` is empty."""


class Fields(NamedTuple):
    """A row of a csv."""

    where: str
    values: list[str]
    problem: str = ""


def records(path: Path, encoding: Encoding = "auto") -> Iterator[Record]:
    """The records of a .csv or .tsv with a header, a .jsonl (one object a line) or a .json (a list, or `data` of it).

    Raises `InputError` when the file cannot be read, is called otherwise, or is a .json that is none.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return csv_records(path, encoding)
    if suffix in (".jsonl", ".ndjson"):
        return json_lines(path, encoding)
    if suffix == ".json":
        return json_list(path, encoding)
    raise InputError(f"metadata {path}: the name ends in {suffix!r:.20}; expected .csv, .tsv, .jsonl, .ndjson or .json")


def csv_records(path: Path, encoding: Encoding = "auto", needed: tuple[str, ...] = ()) -> Iterator[Record]:
    """The rows under a header; raises `InputError` where a `needed` column is missing, one is doubled or no text."""
    rows = csv_rows(path, encoding)
    columns = [name.strip().lower() for name in next(rows, Fields("", [])).values]
    missing = [name for name in needed if name not in columns]
    readable = all(is_utf8(name) and "\0" not in name for name in columns)
    if missing or len(set(columns)) < len(columns) or not columns or not readable:
        found = printable(", ".join(columns)[:200]) or "none"
        raise InputError(
            f"metadata {path}: columns {found}; expected {', '.join(needed) or 'names'} in the first line, each once "
            "(is the file UTF-8?)"
        )
    for row in rows:
        if row.problem or len(row.values) != len(columns):
            yield Record(row.where, {}, row.problem or OTHER_FIELDS)
        else:
            yield Record(row.where, dict(zip(columns, row.values, strict=True)))


def csv_rows(path: Path, encoding: Encoding = "auto", *, spaced: bool = False) -> Iterator[Fields]:
    """All rows that are not empty, the header too; `spaced` where blanks follow the commas."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with _open_text(path, encoding) as text:
        long: list[int] = []
        lines = _lines(text, path, long)
        reader = csv.reader(lines, strict=True, delimiter=delimiter, skipinitialspace=spaced)
        while True:
            start = reader.line_num + 1
            try:
                with _long_fields():
                    fields = next(reader)
            except StopIteration:
                break
            except csv.Error:
                long.clear()
                yield Fields(_where(path, start, reader.line_num), [], MALFORMED_ROW)
                continue
            if long:
                yield Fields(_where(path, start, reader.line_num), [], LARGE_RECORD)
                long.clear()
            elif fields:
                yield Fields(_where(path, start, reader.line_num), fields)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let a field be as long as a record may be: the module's bound is one of the process, and others keep theirs."""
    others = csv.field_size_limit(MAX_RECORD)
    try:
        yield
    finally:
        csv.field_size_limit(others)


def json_lines(path: Path, encoding: Encoding = "auto") -> Iterator[Record]:
    """One object a line; empty lines are passed over."""
    with _open_text(path, encoding) as text:
        long: list[int] = []
        for number, line in enumerate(_lines(text, path, long), 1):
            where = _where(path, number, number)
            if long:
                long.clear()
                yield Record(where, {}, LARGE_RECORD)
            elif not is_utf8(line):
                yield Record(where, {}, NOT_ENCODED)
            elif line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    value = None
                yield Record(where, value) if isinstance(value, dict) else Record(where, {}, NOT_AN_OBJECT)


def json_list(path: Path, encoding: Encoding = "auto") -> Iterator[Record]:
    """The objects in the file's list, or in the list called `data` of its object.

    Raises `InputError` at the first place where the file is not JSON: what follows cannot be told apart.
    """
    with _open_text(path, encoding) as text:
        window = _Window(text, path)
        in_object = _enter_list(window, path)
        number = 0
        while window.next() != "]":
            if number:
                window.take(",")
            value = window.value()
            where = f"{path.name}, entry {number}"
            yield Record(where, value) if isinstance(value, dict) else Record(where, {}, NOT_AN_OBJECT)
            number += 1
        window.take("]")
        _leave_list(window, in_object=in_object)


def _leave_list(window: "_Window", *, in_object: bool) -> None:
    """Pass what may follow the list: two lists in a file, say, are none, and the second is not left out in silence."""
    if in_object:
        while window.next() == ",":
            window.take(",")
            window.value()
            window.take(":")
            window.value()
        window.take("}")
    window.take("")


def _enter_list(window: "_Window", path: Path) -> bool:
    """Pass what is before the list; whether that is in an object."""
    if window.next() == "[":
        window.take("[")
        return False
    window.take("{")
    while window.next() != "}":
        key = window.value()
        window.take(":")
        if key == "data" and window.next() == "[":
            window.take("[")
            return True
        window.value()
        if window.next() == ",":
            window.take(",")
    raise InputError(f"metadata {path}: no list called data; expected a list of objects, or an object with one")


class _Window:
    """A JSON text of which the next `MAX_RECORD` characters are in memory."""

    def __init__(self, text: TextIO, path: Path) -> None:
        self._text, self._path = text, path
        self._buffer, self._at, self._before, self._ended = "", 0, 0, False
        self._decoder = json.JSONDecoder()

    def next(self) -> str:
        """The next character that is no white space, which stays; empty at the end."""
        while True:
            self._fill()
            rest = self._buffer[self._at : self._at + 64]
            blank = len(rest) - len(rest.lstrip())
            self._at += blank
            if not rest or blank < len(rest):
                return rest[blank : blank + 1]

    def take(self, character: str) -> None:
        """Pass `character`; an empty one is the end."""
        if self.next() != character:
            self._refuse(f"expected {character or 'the end'}")
        self._at += len(character)

    def value(self) -> Any:
        """Pass and return a value."""
        self.next()
        try:
            value, self._at = self._decoder.raw_decode(self._buffer, self._at)
            return value
        except (ValueError, RecursionError) as error:
            self._refuse(str(error) if self._ended else f"{error}, or a value over {MAX_RECORD} characters")

    def _fill(self) -> None:
        if not self._ended and len(self._buffer) - self._at < MAX_RECORD:
            more = _read(self._text, self._path, 2 * MAX_RECORD)
            self._ended = not more
            self._before += self._at
            self._buffer, self._at = self._buffer[self._at :] + more, 0

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"metadata {self._path}: no JSON at character {self._before + self._at} ({what}); repair it")


@contextmanager
def _open_text(path: Path, encoding: Encoding) -> Iterator[TextIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"metadata {path}: {error.strerror}; expected a readable file") from error
    with file:
        head = file.peek(4)
        name = {"auto": "utf-8-sig", "utf-8": "utf-8-sig"}.get(encoding, encoding)
        if encoding == "auto" and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            name = "utf-16"
        # What cannot be decoded becomes lone surrogates, which no text may hold: the record is found out and counted.
        yield io.TextIOWrapper(
            file, encoding=name, errors="surrogatepass" if name == "utf-16" else "surrogateescape", newline=""
        )


def _lines(text: TextIO, path: Path, long: list[int]) -> Iterator[str]:
    """The lines; for one that is too long an empty one, and an entry in `long`."""
    while line := _read(text, path, MAX_RECORD, line=True):
        if len(line) < MAX_RECORD or _ends(line):
            yield line
        else:
            while line and not _ends(line):
                line = _read(text, path, MAX_RECORD, line=True)
            long.append(1)
            yield "\n"


def _ends(line: str) -> bool:
    return line.endswith(("\n", "\r"))


def _read(text: TextIO, path: Path, size: int, *, line: bool = False) -> str:
    try:
        return text.readline(size) if line else text.read(size)
    except UnicodeDecodeError as error:
        raise InputError(f"metadata {path}: not {error.encoding} ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"metadata {path}: {error.strerror}; expected a readable file") from error


def _where(path: Path, first: int, last: int) -> str:
    return f"{path.name}, line {last}" if first >= last else f"{path.name}, lines {first} to {last}"
