"""The metadata files of datasets: csv and tab-separated text, checked as they are read."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ....data.audio import printable
from ....errors import InputError


@dataclass(frozen=True)
class Row:
    """One row of a table: where it stands, and the text of each column asked for, without white space around it."""

    where: str
    values: tuple[str, ...]


def require(directory: Path, dataset: str, layout: str, *needed: str) -> None:
    """Raise InputError unless ``directory`` holds each path of ``needed``; ``layout`` says what it should look like."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; expected {dataset} as {layout}")
    absent = [path for path in needed if not (directory / path).exists()]
    if absent:
        raise InputError(f"{directory}: not laid out as {dataset}: no {' and no '.join(absent)}; expected {layout}")


def read_table(
    path: Path, columns: Sequence[str], *, header: bool = True, delimiter: str = ",", quoted: bool = True
) -> list[Row]:
    """Read the ``columns`` of a UTF-8 table with a ``header``, or, without one, its first columns.

    Raises InputError where the file cannot be read, lacks a column, or has a row that is too short.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a readable table") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        at = _positions(path, next(reader, []), columns) if header else list(range(len(columns)))
        rows = [(reader.line_num, fields) for fields in reader if any(fields)]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; expected a plain table") from None
    short = next(((line, fields) for line, fields in rows if len(fields) <= max(at)), None)
    if short is not None:
        raise InputError(f"{path}, line {short[0]}: {len(short[1])} fields; expected at least {max(at) + 1}")
    return [Row(f"{path}, line {line}", tuple(fields[i].strip() for i in at)) for line, fields in rows]


def once(groups: dict[str, str], name: str, value: str, row: Row, what: str) -> None:
    """Enter ``value`` under ``name``; raises InputError where an earlier row gave it another one."""
    before = groups.setdefault(name, value)
    if before != value:
        raise InputError(
            f"{row.where}: {what} of {printable(name)} is {value!r}, above it was {before!r}; keep one of them"
        )


def check_caption(caption: str, name: str, row: Row) -> str:
    """Return the caption in one line; raises InputError where it is empty."""
    text = " ".join(caption.split())
    if not text:
        raise InputError(f"{row.where}: a reference caption of {printable(name)} is empty; write it, or drop the row")
    return text


def _positions(path: Path, header: list[str], columns: Sequence[str]) -> list[int]:
    names = [name.strip() for name in header]
    absent = [column for column in columns if column not in names]
    if absent:
        raise InputError(
            f"{path}: no column {', '.join(absent)}; found {', '.join(names) or 'none'}, "
            f"expected {', '.join(columns)} in the first line"
        )
    return [names.index(column) for column in columns]
