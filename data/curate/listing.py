"""All entries of all sources, in order, as a manifest without durations: what `ingest` then opens, part by part."""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path

from ...errors import RunError
from ..audio import printable
from ..progress import progress_bar
from ..shard_writer import sha256_of
from .manifest import PART_ROWS, Manifest, Row, new_row, part_name, read_manifest, write_manifest, write_part
from .sources.audio_index import AudioIndex
from .sources.audiocaps import read_audiocaps
from .sources.clotho import read_clotho
from .sources.entry import MAX_ID, Entry
from .sources.freesound import read_freesound
from .sources.id_list import read_id_list
from .sources.laion import read_laion
from .sources.source import Layout, Source
from .sources.wavcaps import read_wavcaps

DUPLICATE = "id that its source has already"

_READERS: dict[Layout, Callable[[Source, AudioIndex], Iterator[Entry]]] = {
    "audiocaps": read_audiocaps,
    "clotho": read_clotho,
    "freesound": read_freesound,
    "laion": read_laion,
    "wavcaps": read_wavcaps,
    "ids": read_id_list,
}


class Seen:
    """Which (source, id) there were, in a file, so that memory does not grow with their number."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path)
        self._database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        self._database.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, source: str, id: str) -> bool:
        """Whether it is new."""
        key = blake2b(f"{source}/{id}".encode(), digest_size=16).digest()
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1

    def close(self) -> None:
        """Close the file."""
        self._database.close()


@contextmanager
def databases_in(folder: Path) -> Iterator[None]:
    """Raise `RunError` that names the folder where a database in it cannot be written: a full disk, say."""
    try:
        yield
    except sqlite3.Error as error:
        raise RunError(f"{folder}: {error}; check the free space there, then give the same command again") from error


def list_sources(sources: Iterable[Source], folder: Path, *, progress: bool) -> Manifest:
    """Write to `folder`, which must not exist, a row for every entry of `sources`.

    Of a row that is not `excluded`, only `seconds` is missing. Of one that is, `path` is the file and line that list
    it, and the id is printable. Counts are of texts that were dropped.

    Raises `InputError` when a source's metadata or audio folder cannot be read, `RunError` where the disk is full.
    """
    folder.mkdir(parents=True)
    names: list[str] = []
    rows: list[Row] = []
    counts = Counter[str]()
    described: list[dict[str, str]] = []

    def write() -> None:
        names.append(part_name(len(names)))
        write_part(folder / names[-1], rows, counts)
        rows.clear()
        counts.clear()

    scratch = folder / "scratch"
    scratch.mkdir()
    with (
        databases_in(scratch),
        progress_bar(progress, "entries") as bar,
        closing(Seen(scratch / "seen")) as seen,
    ):
        task = bar.add_task("listing", total=None)
        for number, source in enumerate(sources):
            with closing(AudioIndex(source.audio / source.split, scratch / str(number))) as index:
                for entry in _READERS[source.layout](source, index):
                    rows.append(_row(source, entry, seen, counts))
                    bar.advance(task)
                    if len(rows) == PART_ROWS:
                        write()
            described.append(_settings(source))
    if rows:
        write()
    shutil.rmtree(scratch)
    write_manifest(folder, "list", {"sources": described}, names)
    return read_manifest(folder)


def _row(source: Source, entry: Entry, seen: Seen, counts: Counter[str]) -> Row:
    problem = entry.problem or ("" if seen.add(source.name, entry.id) else DUPLICATE)
    if problem:
        row = new_row(printable(entry.id[:MAX_ID]), source.name, source.kind, printable(entry.where), 0.0)
        row["excluded"] = problem
        return row
    row = new_row(entry.id, source.name, source.kind, entry.path, 0.0)
    row["title"], row["tags"], row["texts"] = entry.title, list(entry.tags), list(entry.texts)
    row["licence"] = entry.licence
    counts.update(f"dropped: {reason}" for reason in entry.dropped)
    return row


def _settings(source: Source) -> dict[str, str]:
    named = {"layout": source.layout, "name": source.name, "kind": source.kind, "audio": str(source.audio.resolve())}
    named |= {"split": source.split, "encoding": source.encoding}
    if source.metadata is not None:
        named |= {"metadata": str(source.metadata.resolve()), "sha256": sha256_of(source.metadata)}
    return named
