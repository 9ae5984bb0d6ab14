"""Stages over a manifest: what a kill leaves, how many workers, what is refused."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cacophony.data.curate.actors import Actors
from cacophony.data.curate.manifest import (
    Manifest,
    Row,
    new_row,
    part_name,
    read_manifest,
    read_part,
    schema,
    write_manifest,
    write_part,
)
from cacophony.data.curate.parts import Work, run_stage
from cacophony.errors import InputError
from cacophony.file_lock import locked
from ray import cloudpickle

PARTS, ROWS = 5, 7
HERE = Actors(workers=0)


@dataclass
class Shout:
    """Writes each description in capitals; can die at a part, as a machine that loses power would."""

    dies_at: str = ""
    seen: list[str] = field(default_factory=list)

    def __call__(self, rows: list[Row], counts: Counter[str]) -> list[Row]:
        for row in rows:
            if row["id"] == self.dies_at:
                raise KeyboardInterrupt
            self.seen.append(row["id"])
            row["texts"] = [text.upper() for text in row["texts"]]
            counts["shouted"] += 1
        return [row for row in rows if row["id"] != "clip 3"]


def refuse() -> Shout:
    raise InputError("model x: no such directory")


@pytest.fixture
def source(tmp_path: Path) -> Manifest:
    folder = tmp_path / "source"
    folder.mkdir()
    for part in range(PARTS):
        rows = []
        for number in range(part * ROWS, (part + 1) * ROWS):
            rows.append(new_row(f"clip {number}", "made", "noisy", f"/audio/{number}.wav", 1.5 + number))
            rows[-1]["texts"] = [f"wind ünd rain {number}"]
        write_part(folder / part_name(part), rows, {"taken": len(rows)})
    write_manifest(folder, "made", {}, map(part_name, range(PARTS)))
    return read_manifest(folder)


def stage(
    source: Manifest, out: Path, work: Shout | Callable[[], Work], actors: Actors = HERE, **settings: object
) -> Manifest:
    make = partial(_same, work) if isinstance(work, Shout) else work
    return run_stage(source, out, stage="shout", settings=settings, make=make, actors=actors)


def _same(work: Shout) -> Shout:
    return work


def test_rows_come_back_as_written(source: Manifest) -> None:
    rows = list(source)

    assert [row["id"] for row in rows] == [f"clip {number}" for number in range(PARTS * ROWS)]
    assert rows[4]["texts"] == ["wind ünd rain 4"]
    assert source.rows == PARTS * ROWS
    assert source.counts == {"taken": PARTS * ROWS}


def test_a_stage_killed_at_any_part_continues_and_ends_the_same(source: Manifest, tmp_path: Path) -> None:
    whole = stage(source, tmp_path / "whole", Shout())
    for part in range(PARTS):
        out = tmp_path / f"out {part}"
        with pytest.raises(KeyboardInterrupt):
            stage(source, out, Shout(dies_at=f"clip {part * ROWS + 4}"))
        assert not out.exists()
        second = Shout()
        result = stage(source, out, second)

        assert second.seen[0] == f"clip {part * ROWS}"  # nothing is done twice
        assert result.digest == whole.digest
    assert whole.counts == {"shouted": PARTS * ROWS}
    assert whole.rows == PARTS * ROWS - 1
    assert all(row["texts"][0].isupper() for row in whole)


def test_the_same_manifest_in_this_process_and_on_actors(source: Manifest, tmp_path: Path) -> None:
    here = stage(source, tmp_path / "here", Shout())
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import the tests
    actors = stage(source, tmp_path / "actors", Shout(), Actors(workers=2))

    assert actors.digest == here.digest
    with pytest.raises(InputError, match="no such directory"):
        stage(source, tmp_path / "refused", refuse, Actors(workers=1))


def test_a_finished_stage_is_not_done_again_and_another_is_refused(source: Manifest, tmp_path: Path) -> None:
    out, again = tmp_path / "out", Shout()
    first = stage(source, out, Shout(), loud=True)

    assert stage(source, out, again, loud=True).digest == first.digest
    assert not again.seen
    with pytest.raises(InputError, match="result of another call"):
        stage(source, out, Shout(), loud=False)


def test_one_process_at_a_time_works_on_a_result(source: Manifest, tmp_path: Path) -> None:
    work = Shout()
    with locked(tmp_path / ".out.curating", "working"), pytest.raises(InputError, match="another process is working"):
        stage(source, tmp_path / "out", work)
    assert work.seen == []
    assert stage(source, tmp_path / "out", work).rows == PARTS * ROWS - 1
    assert not list((tmp_path / "out").glob(".*"))


def test_unfinished_work_with_other_settings_is_kept(source: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        stage(source, out, Shout(dies_at="clip 30"), loud=True)

    with pytest.raises(InputError, match="unfinished work with other inputs"):
        stage(source, out, Shout(), loud=False)
    second = Shout()
    stage(source, out, second, loud=True)
    assert second.seen[0] == "clip 28"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest"),
        (lambda folder: (folder / "manifest.json").write_text("[1"), "cannot be read as JSON"),
        (lambda folder: _edit(folder, version=2), "version is 2"),
        (lambda folder: _edit(folder, format="tar"), "format is 'tar'"),
        (lambda folder: _edit(folder, parts=[{"name": "../x", "rows": 1, "sha256": ""}]), "outside the folder"),
        (lambda folder: _edit(folder, counts=3), "not the description"),
        (lambda folder: (folder / part_name(2)).write_bytes(b"PAR1"), "not the bytes"),
        (lambda folder: (folder / part_name(2)).unlink(), "cannot be read"),
    ],
)
def test_a_damaged_manifest_is_named(source: Manifest, change: Callable[[Path], None], message: str) -> None:
    change(source.folder)

    with pytest.raises(InputError, match=message):
        list(read_manifest(source.folder))


def test_a_part_of_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({"id": ["a"]}), path)

    with pytest.raises(InputError, match="columns"):
        read_part(path)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("title", pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())),
        ("kind", ["loud"]),
        ("seconds", [float("nan")]),
        ("texts", [[None]]),
        ("cleaned", [[None]]),
        ("cleaned", [[{"text": None, "flags": []}]]),
        ("cleaned", [[{"text": "rain", "flags": None}]]),
        ("cleaned", [[{"text": "rain", "flags": [None]}]]),
    ],
)
def test_rows_that_no_stage_writes_are_refused(column: str, values: Any, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([cast("Any", new_row("1", "clotho", "clean", "/1.wav", 2.0))], schema=schema())
    at = table.schema.get_field_index(column)
    field = table.schema.field(at)
    pq.write_table(table.set_column(at, field, pa.array(values, field.type)), tmp_path / "part.parquet")

    with pytest.raises(InputError, match=r"part\.parquet: (row 0 is none|cannot be read)"):
        read_part(tmp_path / "part.parquet")


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
