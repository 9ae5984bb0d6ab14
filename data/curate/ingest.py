"""From collections as they are published to the first manifest: the clips whose audio is there and 1 to 300 s long.

What cannot be used is counted by reason in manifest.json and named in `exclusions.csv` beside it.
"""

import csv
import os
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from ...errors import InputError
from ..audio import printable
from ..encode import MAX_SECONDS, MIN_SECONDS
from ..shard_writer import atomic_file
from ..shards_index import refuse_full
from ..workers import CRASHED, Answer, Workers
from .actors import Actors
from .listing import list_sources
from .manifest import MANIFEST_NAME, Manifest, Row, part_counts, part_name, write_part
from .parts import run_parts
from .sources.source import Source

EXCLUSIONS_NAME = "exclusions.csv"


class Exclusion(NamedTuple):
    """An entry of a source that is not in the manifest."""

    source: str
    id: str
    """Printable; empty where the entry could not be read."""
    reason: str
    where: str
    """The file and line that list it, or its audio."""


@dataclass(frozen=True)
class _Prober:
    """Opens the audio of the parts of a listing."""

    listed: Manifest
    folder: Path
    processes: int

    def start(self) -> Callable[[int], int]:
        """Start the processes that open files: a decoder that crashes takes one of them along, and nothing else."""
        workers = Workers(self.processes)

        def run(number: int) -> int:
            rows, counts = self.listed.part(number), part_counts(self.listed.folder / part_name(number))
            answers = workers.in_order("probe", ({"path": row["path"]} for row in rows if not row["excluded"]))
            kept, excluded = _divide(rows, answers, counts)
            _write_exclusions(self.folder / _piece_name(number), excluded)
            write_part(self.folder / part_name(number), kept, counts)
            return len(rows)

        weakref.finalize(run, workers.close)
        return run


def ingest(sources: Sequence[Source], out: Path, *, actors: Actors, progress: bool = True) -> Manifest:
    """Write to `out` the manifest of all usable clips, source by source, each in the order of its metadata.

    Killed and called again, it lists the sources again and continues with the audio that was not yet opened; the
    result is the same, byte for byte, for any number of workers. Memory does not depend on how many clips there are.

    Raises `InputError` when a source cannot be read, `out` is something else, or no entry is usable; `RunError` when
    the processes cannot work.
    """
    if not sources:
        raise InputError("no source; name one with --audiocaps, --clotho, --freesound, --laion, --wavcaps or --ids")
    if not (out / MANIFEST_NAME).is_file():
        refuse_full(out)
    target = out.resolve()
    listing = target.with_name(f".{target.name}.listing")
    shutil.rmtree(listing, ignore_errors=True)
    try:
        listed = list_sources(sources, listing, progress=progress)
        processes = 1 if actors.workers else os.cpu_count() or 1
        settings = {"seconds": [MIN_SECONDS, MAX_SECONDS], "source": listed.provenance}
        return run_parts(
            listed,
            out,
            {"stage": "ingest", "settings": settings},
            lambda work: _Prober(listed, work, processes),
            actors,
            progress,
            conclude=lambda work: _conclude(work, listed),
        )
    finally:
        shutil.rmtree(listing, ignore_errors=True)


def read_exclusions(folder: Path) -> Iterator[Exclusion]:
    """The rows of `exclusions.csv`; raises `InputError` where it is missing or of another form."""
    path = folder / EXCLUSIONS_NAME
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            if next(reader, None) != list(Exclusion._fields):
                raise ValueError(f"expected the columns {', '.join(Exclusion._fields)}")
            yield from (Exclusion(*fields) for fields in reader)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: not what ingest wrote ({error}); ingest again") from error


def _divide(
    rows: list[Row], answers: Iterator[Answer | None], counts: Counter[str]
) -> tuple[list[Row], list[Exclusion]]:
    kept, excluded = [], []
    for row in rows:
        if row["excluded"]:
            reason = row["excluded"]
        else:
            values = (next(answers) or Answer({"seconds": 0.0, "reason": CRASHED}, b"")).values
            reason, row["seconds"] = values["reason"], values["seconds"]
        if reason:
            counts[f"excluded: {reason}"] += 1
            excluded.append(Exclusion(row["source"], row["id"], reason, printable(row["path"])))
        else:
            counts["kept"] += 1
            kept.append(row)
    return kept, excluded


def _piece_name(number: int) -> str:
    return f"excluded-{number:05d}.csv"


def _write_exclusions(path: Path, exclusions: list[Exclusion]) -> None:
    # The name is its own: a worker of a run that was killed may still be writing the same list.
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(exclusions)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _conclude(work: Path, listed: Manifest) -> None:
    """Join the lists of exclusions, part by part; raises `InputError` where no clip is left."""
    path, pieces = work / EXCLUSIONS_NAME, [work / _piece_name(number) for number in range(len(listed.parts))]
    if not path.is_file():  # which is complete, and may have been followed by a kill
        reasons = Counter[str]()
        for number in range(len(listed.parts)):
            reasons += part_counts(work / part_name(number))
        if not reasons["kept"]:
            shutil.rmtree(work)
            why = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(5))
            raise InputError(f"none of {listed.rows} entries is usable ({why or 'the sources list none'})")
        with atomic_file(path) as file:
            file.write((",".join(Exclusion._fields) + "\n").encode())
            for piece in pieces:
                file.write(piece.read_bytes())
    for piece in pieces:
        piece.unlink(missing_ok=True)
