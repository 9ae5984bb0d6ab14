"""Packing: a folder of audio and its captions become shards.

Processes decode, resample and encode a little ahead; this one writes, in the order of the sorted names, so the bytes do
not depend on how many they are. Each range of `clips_per_shard` files is one step and has a record when it is done:
packing that was interrupted, however suddenly, continues with the first range that has none. Only the listing of the
corpus is held in memory as a whole.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import soundfile as sf
import soxr

from ..errors import InputError
from ..file_lock import locked
from .audio import SAMPLE_RATE, printable
from .corpus import Candidate
from .encode import MAX_SECONDS, MIN_SECONDS
from .layouts import Layout, Listing, list_corpus
from .pack_report import KEPT, SKIPPED, WARNING, PackReport, ReportRow, write_report
from .progress import progress_bar
from .shard_writer import ShardWriter, write_atomically
from .shards_files import VERSION
from .shards_index import ShardIndex, ShardTotals, refuse_full, shard_entry, shard_name
from .workers import CRASHED, Answer, Workers


@dataclass
class _Range:
    """What is recorded of a finished range of files."""

    shard: dict[str, Any] | None = None
    digests: list[str] = field(default_factory=list)
    totals: ShardTotals = field(default_factory=ShardTotals)
    rows: list[ReportRow] = field(default_factory=list)


@dataclass(frozen=True)
class _Packing:
    """One call of `pack`."""

    source: Path
    target: Path
    work: Path
    """Where everything is written until it is complete."""
    listing: Listing
    strict: bool
    workers: int
    clips_per_shard: int
    progress: bool

    @property
    def ranges(self) -> int:
        """How many there will be."""
        return -(-len(self.listing.candidates) // self.clips_per_shard)

    def record_path(self, number: int) -> Path:
        """Where a finished range is recorded."""
        return self.work / "ranges" / f"{number:06d}.json"


def pack(
    audio_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    captions: str | os.PathLike[str] | None = None,
    layout: Layout = "auto",
    strict: bool = False,
    workers: int | None = None,
    clips_per_shard: int = 512,
    progress: bool = True,
) -> PackReport:
    """Pack the audio under `audio_dir` (1 to 300 s) and its captions, which `layouts` finds, into shards at `out`.

    Everything is written beside `out` and moved there at the end. Interrupted, or killed, and called again with equal
    inputs it continues; the result is the same, byte for byte, also for any number of `workers` (processes; None: one
    per core). What cannot be used is skipped and named in `out/report.csv`; with `strict` the first such defect ends
    the packing. `progress` shows a bar where stderr is a terminal.

    Raises `InputError` when an argument is wrong, `out` is not empty or in `audio_dir`, nothing usable is there, or for
    a strict defect; `RunError` when the processes cannot work.
    """
    count = workers if workers is not None else os.cpu_count() or 1
    if count < 1 or clips_per_shard < 1:
        raise InputError(f"workers is {count} and clips_per_shard {clips_per_shard}; expected at least 1 of each")
    source, target = Path(audio_dir), Path(out).resolve()
    work = target.with_name(f".{target.name}.packing")
    moved = target.is_dir() and any(target.iterdir()) and work.exists() and not (work / "shards").exists()
    if not moved:
        refuse_full(target)
    listing = list_corpus(source, layout, Path(captions) if captions is not None else None)
    if target.is_relative_to(source.resolve()):
        raise InputError(
            f"{target}: lies in the folder that is packed, where it would be taken for a part of it when this call is "
            "continued; give a directory outside"
        )
    packing = _Packing(source, target, work, listing, strict, count, clips_per_shard, progress)
    with locked(work, "packing"):
        if moved:
            return _after_move(packing)
        try:
            refuse_full(target)  # another process may just have packed it
            _prepare_work(packing)
            _pack_ranges(packing)
            report = _finish(packing)
        except InputError:
            shutil.rmtree(work)
            raise
        shutil.rmtree(work)
        return report


def _plan(packing: _Packing) -> bytes:
    """A digest of everything that decides the bytes of the shards."""
    settings = {
        "version": VERSION,
        "clips_per_shard": packing.clips_per_shard,
        "seconds": [MIN_SECONDS, MAX_SECONDS],
        "libraries": [sf.__version__, sf.__libsndfile_version__, soxr.__version__],
        "captions": packing.listing.digest,
    }
    digest = hashlib.sha256(json.dumps(settings).encode())
    for candidate in packing.listing.candidates:
        digest.update(json.dumps([candidate.name, *candidate.stamp, *candidate.audio[1:]]).encode())
    return json.dumps({"digest": digest.hexdigest()}).encode()


def _prepare_work(packing: _Packing) -> None:
    plan, plan_path = _plan(packing), packing.work / "plan.json"
    if not (plan_path.is_file() and plan_path.read_bytes() == plan):
        plan_path.unlink(missing_ok=True)
        for folder in ("ranges", "shards"):
            shutil.rmtree(packing.work / folder, ignore_errors=True)
    # A process that was killed may have left something half done.
    shutil.rmtree(packing.work / "scratch", ignore_errors=True)
    for folder in ("ranges", "shards", "scratch"):
        (packing.work / folder).mkdir(parents=True, exist_ok=True)
    write_atomically(plan_path, plan)


def _pack_ranges(packing: _Packing) -> None:
    done = number_of_shard = 0
    for finished in _finished(packing):
        done += 1
        number_of_shard += finished.shard is not None
        if packing.strict:
            _refuse_defects(packing.source, finished.rows)
    candidates, size = packing.listing.candidates, packing.clips_per_shard
    start = min(done * size, len(candidates))
    with Workers(packing.workers) as workers, progress_bar(packing.progress) as bar:
        task = bar.add_task("packing", total=len(candidates), completed=start)
        answers = _answers(workers, candidates, start, str(packing.work / "scratch"))
        for number in range(done, packing.ranges):
            name = shard_name(number_of_shard)
            current = _Range()
            with ShardWriter(packing.work / "shards" / name) as writer:
                for at in range(number * size, min((number + 1) * size, len(candidates))):
                    rows = _add(writer, current, f"{at:09d}", candidates[at], next(answers))
                    if packing.strict:
                        _refuse_defects(packing.source, rows)
                    bar.advance(task)
                if writer.clip_digests:
                    clips = len(writer.clip_digests)
                    current.shard = shard_entry(name, clips, current.totals.samples, *writer.commit())
                    current.digests = writer.clip_digests
                    number_of_shard += 1
            write_atomically(packing.record_path(number), json.dumps(asdict(current)).encode())


def _finished(packing: _Packing) -> Iterator[_Range]:
    """The ranges, from the first on, whose record and shard are there."""
    for number in range(packing.ranges):
        try:
            finished = _read_record(packing.record_path(number))
            shard = finished.shard
            if shard is not None and (packing.work / "shards" / shard["name"]).stat().st_size != shard["bytes"]:
                return
        except (OSError, ValueError, KeyError, TypeError):
            return
        yield finished


def _records(packing: _Packing) -> Iterator[_Range]:
    return map(_read_record, map(packing.record_path, range(packing.ranges)))


def _read_record(path: Path) -> _Range:
    record = json.loads(path.read_bytes())
    totals, rows = ShardTotals(**record["totals"]), [ReportRow(*row) for row in record["rows"]]
    return _Range(record["shard"], record["digests"], totals, rows)


def _answers(workers: Workers, candidates: Sequence[Candidate], start: int, scratch: str) -> Iterator[Answer | None]:
    """One per candidate: what the processes say, and of a candidate with a known defect that defect."""
    rest = range(start, len(candidates))
    jobs = (
        {"name": c.name, "audio": c.audio, "sidecar": c.sidecar, "scratch": scratch}
        for c in (candidates[at] for at in rest)
        if not c.defect
    )
    encoded = workers.in_order("encode", jobs)
    for at in rest:
        yield Answer({"reason": candidates[at].defect}, b"") if candidates[at].defect else next(encoded)


def _add(
    writer: ShardWriter, current: _Range, key: str, candidate: Candidate, answer: Answer | None
) -> list[ReportRow]:
    name = printable(candidate.name)
    values, flac = answer or Answer({"reason": CRASHED}, b"")
    if values["reason"]:
        rows = [ReportRow(name, SKIPPED, values["reason"], "", 0.0)]
    else:
        captions = [*candidate.captions, *values["captions"]]
        samples = values["samples"]
        record = {
            "text": captions,
            "synthetic_text": candidate.synthetic_captions,
            "duration": samples / SAMPLE_RATE,
            "sample_rate": SAMPLE_RATE,
            "samples": samples,
            "source": candidate.name,
        }
        writer.add(key, flac, record)
        rows = [ReportRow(name, WARNING, reason, "", 0.0) for reason in (*candidate.warnings, *values["dropped"])]
        rows.append(ReportRow(name, KEPT, "", key, samples / SAMPLE_RATE))
        current.totals.add(samples, len(captions), len(candidate.synthetic_captions))
    current.rows.extend(rows)
    return rows


def _refuse_defects(source: Path, rows: Iterable[ReportRow]) -> None:
    for row in rows:
        if row.status != KEPT:
            raise InputError(f"{source / row.file}: {row.reason}; repair the corpus, or pack without strict to skip it")


def _finish(packing: _Packing) -> PackReport:
    """Write the directory's own files and move it to its place."""
    report = _report(packing)
    if not report.kept:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in report.skipped.items())
        files = sum(report.skipped.values())
        raise InputError(
            f"audio folder {packing.source}: none of {files} files is usable ({reasons}); expected 1 to 300 s"
        )
    index, folder = ShardIndex(), packing.work / "shards"
    for done in _records(packing):
        if done.shard is not None:
            index.add(done.shard, done.totals, done.digests)
    write_report(folder, (row for done in _records(packing) for row in done.rows))
    index.write(folder)
    folder.rename(packing.target)
    return report


def _report(packing: _Packing) -> PackReport:
    skipped: Counter[str] = Counter()
    warnings: Counter[str] = Counter()
    kept = samples = 0
    for done in _records(packing):
        skipped.update(row.reason for row in done.rows if row.status == SKIPPED)
        warnings.update(row.reason for row in done.rows if row.status == WARNING)
        kept += len(done.digests)
        samples += done.totals.samples
    return PackReport(
        out=packing.target,
        kept=kept,
        skipped=dict(skipped.most_common()),
        warnings=dict(warnings.most_common()),
        seconds=samples / SAMPLE_RATE,
        layout=packing.listing.how,
    )


def _after_move(packing: _Packing) -> PackReport:
    """The report of a packing that was killed when all was in place but its own traces."""
    plan_path = packing.work / "plan.json"
    if not (plan_path.is_file() and plan_path.read_bytes() == _plan(packing)):
        raise InputError(f"{packing.target}: already there, made of other files; give another directory or remove it")
    report = _report(packing)
    shutil.rmtree(packing.work)
    return report
