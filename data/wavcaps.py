"""Captions of WavCaps-style corpora: one json object whose `data` lists an id and a caption for each audio file."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .audio import AUDIO_SUFFIXES
from .captions import CaptionRow, normal_name, read_bounded

_EXPECTED = 'expected {"data": [{"id": …, "caption": …}, …]}'


@dataclass(frozen=True, slots=True)
class IdTable:
    """All captions of a WavCaps-style file, in its order; `file` of a row is an id, with or without an extension."""

    path: Path
    """Where the json lies."""
    rows: tuple[CaptionRow, ...]
    """One entry per caption."""
    digest: str
    """SHA-256 of the json's bytes, hexadecimal."""

    def by_file(self, on_disk: Iterable[str]) -> dict[str, list[CaptionRow]]:
        """Rows grouped by the file that is the id, or is called so, or is called so without its extension.

        An id without a file stays as it is. Raises `InputError` for an id that fits several files.
        """
        first: dict[str, str] = {}
        second: dict[str, str] = {}
        for name in sorted(on_disk):
            path = normal_name(name)
            if path.lower().endswith(AUDIO_SUFFIXES):
                base = path.rpartition("/")[2]
                for key in {path, base, base.rpartition(".")[0]}:
                    if first.setdefault(key, name) != name:
                        second[key] = name
        groups: dict[str, list[CaptionRow]] = {}
        for row in self.rows:
            wanted = normal_name(row.file)
            bare = wanted.rpartition(".")[0] if wanted.lower().endswith(AUDIO_SUFFIXES) else wanted
            key = wanted if wanted in first else bare
            if key in second:
                raise InputError(
                    f"captions file {self.path}: id {row.file[:80]!r} fits {first[key]} and {second[key]}; "
                    "pack the folders of different data sets one by one, then merge the shards"
                )
            groups.setdefault(first.get(key, wanted), []).append(row)
        return groups


def read_wavcaps(json_path: str | os.PathLike[str]) -> IdTable:
    """Read a json object whose `data` lists entries with `id` (or `audio`) and `caption`, a string or several.

    The captions of WavCaps were written by a machine, but the same form is used for AudioCaps and Clotho: an entry's
    own `synthetic` (true or false) decides, and where it has none its captions count as written by people. Raises
    `InputError` when the file cannot be read, is too large, or is of another form.
    """
    path = Path(json_path)
    content = read_bounded(path)
    try:
        root = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"captions file {path}: cannot be read as JSON ({error}); {_EXPECTED}") from error
    entries = root.get("data") if isinstance(root, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"captions file {path}: no list called data; {_EXPECTED}")
    rows = [row for number, entry in enumerate(entries) for row in _rows(path, number, entry)]
    return IdTable(path, tuple(rows), hashlib.sha256(content).hexdigest())


def _rows(path: Path, number: int, entry: Any) -> list[CaptionRow]:
    where = f"captions file {path}, entry {number}"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: a {type(entry).__name__}; {_EXPECTED}")
    name = entry.get("id", entry.get("audio"))
    caption = entry.get("caption")
    captions: list[Any] = caption if isinstance(caption, list) else [caption]
    if not isinstance(name, str | int) or not str(name).strip():
        raise InputError(f"{where}: no id; {_EXPECTED}")
    if not all(isinstance(text, str) for text in captions):
        raise InputError(f"{where}: caption is neither a string nor a list of strings; {_EXPECTED}")
    synthetic = entry.get("synthetic", False)
    if not isinstance(synthetic, bool):
        raise InputError(f"{where}: synthetic is {synthetic!r:.40}; expected true or false")
    return [CaptionRow(number, str(name).strip(), text.strip(), synthetic) for text in captions]
