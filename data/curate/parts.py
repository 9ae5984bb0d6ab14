"""A stage over a manifest: every part is read, worked on and written by itself, here or on Ray's actors.

Parts are written into a folder beside the result, which gets its name when all are there. Killed and called again with
equal inputs, a stage continues with the parts that are missing. A part's rows depend on its input alone, so the result
is the same for any number of workers.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...errors import InputError
from ...file_lock import LOCK_FILE, locked
from ..progress import progress_bar
from ..shard_writer import write_atomically
from ..shards_index import refuse_full
from .actors import Actors, Starter, on_actors
from .manifest import MANIFEST_NAME, Manifest, Row, part_name, read_manifest, write_manifest, write_part

_PLAN_NAME = "plan.json"


class Work(Protocol):
    """What a stage does with a part. It may change the rows, drop some and count, by reason, what it did."""

    def __call__(self, rows: list[Row], counts: Counter[str]) -> list[Row]:
        """The rows that the part has afterwards."""
        ...


@dataclass(frozen=True)
class PartWorker:
    """Works on one part after another; what it needs (a model, say) is made once, in the process that uses it."""

    source: Manifest
    folder: Path
    make: Callable[[], Work]

    def start(self) -> Callable[[int], int]:
        """Make the work; the result does part `number` and returns how many rows it had."""
        work = self.make()

        def run(number: int) -> int:
            rows, counts = self.source.part(number), Counter[str]()
            size = len(rows)
            write_part(self.folder / part_name(number), work(rows, counts), counts)
            return size

        return run


def run_stage(
    source: Manifest,
    out: Path,
    *,
    stage: str,
    settings: Mapping[str, Any],
    make: Callable[[], Work],
    actors: Actors,
    progress: bool = True,
) -> Manifest:
    """Write to `out` the manifest that `make()` makes of `source`, part by part.

    Args:
        source: What is read.
        out: Directory of the result; must not exist, or be the complete result of the same call.
        stage: Name of the stage, for manifest.json and the bar.
        settings: Everything that decides the rows, as JSON; `source`, the provenance of what is read, is added.
        make: Called in each process that works. For Ray it has to survive a copy into another process: a function of a
            module, a frozen dataclass, or a `functools.partial` of these.
        actors: Where and on how many processes.
        progress: Show a bar where stderr is a terminal.

    Raises:
        InputError: `out` is something else, or a stage with other settings was left unfinished there.
    """
    plan = {"stage": stage, "settings": dict(settings) | {"source": source.provenance}}
    return run_parts(source, out, plan, lambda work: PartWorker(source, work, make), actors, progress)


def run_parts(
    source: Manifest,
    out: Path,
    plan: Mapping[str, Any],
    worker_of: Callable[[Path], Starter],
    actors: Actors,
    progress: bool,
    conclude: Callable[[Path], None] | None = None,
) -> Manifest:
    """`run_stage` with a worker of the caller's, made for the folder of unfinished work.

    For each part of `source` the worker writes the part of the result with the same number and returns the rows that
    it read; `conclude` is called with the folder when all parts are there, and adds what else belongs to the result.
    """
    finished = finished_before(out, plan)
    if finished is not None:
        return finished
    with unfinished(out, plan) as work:
        # A part gets its name when it is complete and on disk.
        todo = [number for number in range(len(source.parts)) if not (work / part_name(number)).is_file()]
        done_before = source.rows - sum(source.parts[number].rows for number in todo)
        with progress_bar(progress, "clips") as bar:
            task = bar.add_task(plan["stage"], total=source.rows, completed=done_before)
            for rows in _each(worker_of(work), todo, actors):
                bar.advance(task, rows)
        if conclude is not None:
            conclude(work)
        return finish(out, plan, len(source.parts))


def finished_before(out: Path, plan: Mapping[str, Any]) -> Manifest | None:
    """The result at `out` where it is that of `plan`; None where there is nothing; raises `InputError` for others."""
    if (out / MANIFEST_NAME).is_file():
        manifest = read_manifest(out)
        if {"stage": manifest.stage, "settings": manifest.settings} == json.loads(json.dumps(plan)):
            return manifest
        raise InputError(f"{out}: the result of another call; give another directory or remove it")
    refuse_full(out)
    return None


@contextmanager
def unfinished(out: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """The folder beside `out` for unfinished work, which no other process gets meanwhile.

    Raises `InputError` where another process has it, or that of another plan lies there.
    """
    target = out.resolve()
    work = target.with_name(f".{target.name}.curating")
    with locked(work, f"working on {target.name}"):
        refuse_full(target)  # another process may just have finished it
        left, content = work / _PLAN_NAME, json.dumps(plan, sort_keys=True).encode()
        # Of another plan nothing is there where it was refused before anything was done: a model that is none, say.
        if left.is_file() and left.read_bytes() != content and any(work.glob("*.parquet")):
            raise InputError(
                f"{work}: unfinished work with other inputs or settings; call it as before to continue, or remove it"
            )
        write_atomically(left, content)
        yield work


def finish(out: Path, plan: Mapping[str, Any], parts: int) -> Manifest:
    """Describe the parts in the folder of unfinished work and give it the name `out`."""
    target = out.resolve()
    work = target.with_name(f".{target.name}.curating")
    for unfinished in work.glob("*.tmp"):  # of processes that were killed
        unfinished.unlink()
    write_manifest(work, plan["stage"], plan["settings"], map(part_name, range(parts)))
    (work / _PLAN_NAME).unlink()
    (work / LOCK_FILE).unlink()
    if target.is_dir():
        target.rmdir()
    work.rename(target)
    return read_manifest(out)


def _each(worker: Starter, todo: list[int], actors: Actors) -> Iterator[int]:
    if actors.workers:
        yield from on_actors(worker, todo, actors)
    else:
        yield from map(worker.start(), todo)
