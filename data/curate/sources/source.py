"""A source as the user names it: which layout, where its files are, and what it is called in the manifest."""

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ....errors import InputError
from ..manifest import KINDS, Kind
from .records import ENCODINGS, Encoding

Layout = Literal["audiocaps", "clotho", "freesound", "laion", "wavcaps", "ids"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_KIND: dict[Layout, Kind] = {
    "audiocaps": "clean",
    "clotho": "clean",
    "laion": "clean",
    "freesound": "noisy",
    "wavcaps": "noisy",
    "ids": "unlabeled",
}
_SPLIT = {"audiocaps": "train", "clotho": "development"}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A collection on this machine; `make_source` fills in what is usual."""

    layout: Layout
    audio: Path
    """Folder with the audio; of AudioCaps and Clotho, the folder with the csv files and the folders of the splits."""
    metadata: Path | None
    """File that lists the clips; none for AudioCaps, Clotho and LAION, which have theirs beside the audio."""
    name: str
    """`source` of its clips."""
    kind: Kind
    """What its texts are."""
    split: str
    """Part of AudioCaps or Clotho that is read; empty for other layouts."""
    encoding: Encoding
    """Of the metadata; `auto` is UTF-8, or UTF-16 where a byte order mark says so."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(f"source name is {self.name!r:.80}; expected up to 64 of a-z, 0-9, '.', '_' and '-'")
        if self.kind not in KINDS:
            raise InputError(f"source {self.name}: kind is {self.kind!r:.40}; expected {', '.join(KINDS)}")
        if self.encoding not in ENCODINGS:
            raise InputError(f"source {self.name}: encoding is {self.encoding!r:.40}; expected {', '.join(ENCODINGS)}")
        if self.split and (self.layout not in _SPLIT or not _NAME.fullmatch(self.split)):
            raise InputError(f"source {self.name}: split is {self.split!r:.40}; only AudioCaps and Clotho have splits")


def make_source(
    layout: Layout,
    audio: Path,
    metadata: Path | None = None,
    *,
    name: str = "",
    kind: Kind | None = None,
    split: str = "",
    encoding: Encoding = "auto",
) -> Source:
    """A source called as its layout, or an id list as its file, with the layout's kind and its training split.

    Raises `InputError` where a value is none of its field or metadata does not go with the layout.
    """
    if layout not in LAYOUTS:
        raise InputError(f"source layout is {layout!r:.40}; expected {', '.join(LAYOUTS)}")
    listed = layout in ("freesound", "wavcaps", "ids")
    if listed != (metadata is not None):
        raise InputError(f"source {layout} at {audio}: {'name its metadata file' if listed else 'leave out metadata'}")
    stem = metadata.stem.lower() if metadata and layout == "ids" else layout
    return Source(
        layout=layout,
        audio=audio,
        metadata=metadata,
        name=name or re.sub(r"[^a-z0-9._-]", "-", stem),
        kind=kind or _KIND[layout],
        split=split or _SPLIT.get(layout, ""),
        encoding=encoding,
    )


def read_sources(path: Path) -> list[Source]:
    """The `[[source]]` tables of a TOML file, whose keys are `Source`'s fields; paths are relative to its folder.

    Raises `InputError` when the file cannot be read or a table has a wrong key or value.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    tables = content.get("source")
    if not isinstance(tables, list) or content.keys() != {"source"} or not all(isinstance(t, dict) for t in tables):
        raise InputError(f"{path}: expected one or more [[source]] tables, and nothing else")
    return [_source(path, number, table) for number, table in enumerate(tables, 1)]


def _source(path: Path, number: int, table: dict[str, Any]) -> Source:
    known = [field.name for field in fields(Source)]
    wrong = [key for key, value in table.items() if key not in known or not isinstance(value, str)]
    missing = [key for key in ("layout", "audio") if key not in table]
    if wrong or missing:
        raise InputError(
            f"{path}, source {number}: {', '.join(wrong or missing)[:80]} is {'wrong' if wrong else 'missing'}; "
            f"expected texts: {', '.join(known)}"
        )
    places = {key: path.parent / table[key] for key in ("audio", "metadata") if key in table}
    try:
        return make_source(**(table | places))
    except InputError as error:
        raise InputError(f"{path}, source {number}: {error}") from None
