"""The manifest: a directory of Parquet files with a row for each clip, and a json that describes them.

    manifest.json     format, version, the stage that wrote it, its settings, the parts, counts for the report
    part-00000.parquet, part-00001.parquet, …   up to PART_ROWS rows each, in order

A manifest is never changed: each stage reads one and writes another, part by part, so that memory does not depend on
how many rows there are.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast
from uuid import uuid4

from ...errors import InputError
from ...extras import require
from ...json_file import read_json
from ..shard_writer import sha256_of, write_atomically

FORMAT = "cacophony-manifest"
VERSION = 1
MANIFEST_NAME = "manifest.json"
PART_ROWS = 1_000
"""Rows in a part: what a worker takes at a time, and what is done again after a kill."""
MAX_PART_BYTES = 1 << 29
"""Size of a part that is read."""

Kind = Literal["clean", "noisy", "unlabeled"]
KINDS: tuple[Kind, ...] = ("clean", "noisy", "unlabeled")


class Variant(TypedDict):
    """One text that a model made of a noisy description."""

    text: str
    """As the model wrote it, without surrounding white space."""
    flags: list[str]
    """What `residue` found in it, sorted; empty where nothing is wrong."""


class Row(TypedDict):
    """One clip."""

    id: str
    """Unique within its source: a YouTube id with start time, a Freesound id, a file name."""
    source: str
    """The collection: audiocaps, clotho, freesound, …"""
    kind: Kind
    """clean: captions by people; noisy: descriptions that are no captions; unlabeled: no text."""
    path: str
    """The audio file, absolute."""
    seconds: float
    """Duration that the file's header declares."""
    title: str
    """Of a noisy clip; empty where there is none."""
    tags: list[str]
    """Of a noisy clip."""
    texts: list[str]
    """Captions of a clean clip, or the description of a noisy one, as published."""
    licence: str
    """As published; empty where the source does not say."""
    cleaned: list[Variant]
    """Captions that `clean` made of title, description and tags."""
    synthetic_text: list[str]
    """Captions that `caption` made of the audio."""
    excluded: str
    """Why the clip may not be trained on; empty where it may."""


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet file of a manifest."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest that is complete."""

    folder: Path
    stage: str
    """The stage that wrote it."""
    settings: dict[str, Any]
    """Of the stage, and what it read."""
    parts: tuple[Part, ...]
    counts: dict[str, int]
    """What the stage counted, by reason."""
    digest: str
    """SHA-256 of manifest.json, hexadecimal: equal for equal manifests."""

    @property
    def rows(self) -> int:
        """Rows in all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def provenance(self) -> dict[str, Any]:
        """Which manifest this is and what it was made of, for the settings of the stage that reads it."""
        return {
            "stage": self.stage,
            "rows": self.rows,
            "digest": self.digest,
            "counts": self.counts,
            "settings": self.settings,
        }

    def part(self, number: int) -> list[Row]:
        """The rows of a part; raises `InputError` where the file is not what manifest.json says."""
        part = self.parts[number]
        return read_part(self.folder / part.name, part)

    def __iter__(self) -> Iterator[Row]:
        for number in range(len(self.parts)):
            yield from self.part(number)


def schema() -> Any:
    """The Arrow schema of a part: `Row`, field by field."""
    pa = arrow()
    texts, variant = pa.list_(pa.string()), pa.struct([("text", pa.string()), ("flags", pa.list_(pa.string()))])
    types = {
        "seconds": pa.float64(),
        "tags": texts,
        "texts": texts,
        "cleaned": pa.list_(variant),
        "synthetic_text": texts,
    }
    return pa.schema([pa.field(name, types.get(name, pa.string()), nullable=False) for name in Row.__annotations__])


def arrow() -> Any:
    """The module pyarrow; raises `InputError` where it is not installed."""
    return require("pyarrow", "pyarrow", "a manifest", extra="curate")


def _parquet() -> Any:
    return require("pyarrow.parquet", "pyarrow", "a manifest", extra="curate")


def new_row(id: str, source: str, kind: Kind, path: str, seconds: float) -> Row:
    """A row without any text."""
    return Row(
        id=id,
        source=source,
        kind=kind,
        path=path,
        seconds=seconds,
        title="",
        tags=[],
        texts=[],
        licence="",
        cleaned=[],
        synthetic_text=[],
        excluded="",
    )


def write_part(path: Path, rows: list[Row], counts: Mapping[str, int] | None = None) -> None:
    """Write a part under a temporary name, then rename it; `counts` lie in the file's metadata until all are there."""
    table = arrow().Table.from_pylist(cast("list[dict[str, Any]]", rows), schema=schema())
    write_table(path, table.replace_schema_metadata({"counts": json.dumps(dict(counts or {}), sort_keys=True)}))


def write_table(path: Path, table: Any) -> None:
    """Write an Arrow table as Parquet under a temporary name, then rename it."""
    # The name is its own: a worker of a run that was killed may still be writing the same part.
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    _parquet().write_table(table, unfinished, compression="zstd")
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def read_part(path: Path, expected: Part | None = None) -> list[Row]:
    """The rows of a part; raises `InputError` where it is missing, damaged, of another schema or not `expected`."""
    pq, pa = _parquet(), arrow()
    try:
        if path.stat().st_size > MAX_PART_BYTES:
            raise InputError(f"{path}: over {MAX_PART_BYTES} bytes; write the manifest again")
        if expected is not None and sha256_of(path) != expected.sha256:
            raise InputError(f"{path}: not the bytes that {MANIFEST_NAME} names; write the manifest again")
        file = pq.ParquetFile(path)
        if not file.schema_arrow.equals(schema(), check_metadata=False):
            raise InputError(f"{path}: its columns are not those of a manifest; write it with cacophony curate ingest")
        table = file.read()
        table.validate(full=True)  # Parquet's strings need not be UTF-8
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error}); write the manifest again") from error
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        if not _is_row(row):
            raise InputError(f"{path}: row {number} is none of a manifest; write it with cacophony curate ingest")
    return rows


def _is_row(row: Any) -> bool:
    """Whether a row of the right schema has a known kind, a duration, and no missing text in its lists."""
    cleaned = row["cleaned"]
    if None in cleaned or any(variant["flags"] is None for variant in cleaned):
        return False
    texts = [*row["tags"], *row["texts"], *row["synthetic_text"]]
    texts += [text for variant in cleaned for text in (variant["text"], *variant["flags"])]
    return None not in texts and row["kind"] in KINDS and math.isfinite(row["seconds"])


def part_counts(path: Path) -> Counter[str]:
    """What `write_part` was given as `counts`."""
    metadata = _parquet().read_schema(path).metadata or {}
    return Counter(json.loads(metadata.get(b"counts", b"{}")))


def part_name(number: int) -> str:
    """`part-00000.parquet` and so on."""
    return f"part-{number:05d}.parquet"


def write_manifest(folder: Path, stage: str, settings: Mapping[str, Any], names: Iterable[str]) -> None:
    """Write manifest.json over the parts in `folder`, which are complete."""
    parts, counts = [], Counter[str]()
    for name in names:
        path = folder / name
        rows = _parquet().read_metadata(path).num_rows
        parts.append({"name": name, "rows": rows, "sha256": sha256_of(path)})
        counts += part_counts(path)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "stage": stage,
        "settings": dict(settings),
        "counts": dict(sorted(counts.items())),
        "parts": parts,
    }
    write_atomically(folder / MANIFEST_NAME, (json.dumps(content, indent=1) + "\n").encode())


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest in `folder`; raises `InputError` where there is none, a damaged or a newer one."""
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{folder}: no manifest (no {MANIFEST_NAME}); make one with cacophony curate ingest")
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: format is {content.get('format')!r:.40}; expected {FORMAT}")
    if content.get("version") != VERSION:
        raise InputError(f"{path}: version is {content.get('version')!r:.40}; expected {VERSION}")
    try:
        parts = tuple(_part(entry) for entry in content["parts"])
        counts = {str(reason): int(count) for reason, count in content["counts"].items()}
        stage, settings = str(content["stage"]), dict(content["settings"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not the description of a manifest ({error!r}); write it again") from None
    return Manifest(Path(folder), stage, settings, parts, counts, hashlib.sha256(path.read_bytes()).hexdigest())


def _part(entry: Mapping[str, Any]) -> Part:
    name = str(entry["name"])
    if Path(name).name != name:
        raise ValueError(f"part {name!r:.40} is outside the folder")
    return Part(name, int(entry["rows"]), str(entry["sha256"]))
