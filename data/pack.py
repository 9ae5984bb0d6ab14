"""Packing: a folder of audio files and their captions become shards.

Threads decode, resample and encode ahead; the calling thread writes in the order of the sorted files, so the bytes do
not depend on the number of threads. Each range of `clips_per_shard` files is one step and has a record when it is done:
packing that was interrupted continues with the first range that has none.
"""

import hashlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import soundfile as sf
import soxr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..errors import InputError
from .audio import SAMPLE_RATE, AudioError, encode_flac_int16, printable, read_audio
from .captions import read_captions
from .corpus import AUDIO_SUFFIXES, Candidate, find_candidates
from .pack_report import KEPT, SKIPPED, WARNING, PackReport, ReportRow, write_report
from .shard_writer import ShardWriter, write_atomically
from .shards import FORMAT, INDEX_NAME, SIZES_NAME, VERSION

MIN_SECONDS = 1.0
MAX_SECONDS = 300.0


@dataclass
class _Range:
    """What is recorded of a finished range of files."""

    shard: dict[str, Any] | None = None
    digests: list[str] = field(default_factory=list)
    samples: int = 0
    captions: int = 0
    synthetic_captions: int = 0
    captioned_clips: int = 0
    rows: list[ReportRow] = field(default_factory=list)


def pack(
    audio_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    captions: str | os.PathLike[str] | None = None,
    strict: bool = False,
    workers: int | None = None,
    clips_per_shard: int = 512,
    progress: bool = True,
) -> PackReport:
    """Pack the audio files under `audio_dir` (1 to 300 s) and their captions, a csv, into shards at `out`.

    Everything is written beside `out` and moved there at the end. Interrupted and called again with equal inputs it
    continues; the result is the same, byte for byte, also for any number of `workers` (threads; None: one per core).
    What cannot be used is skipped and named in `out/report.csv`; with `strict` the first such defect ends the packing.
    `progress` shows a bar where stderr is a terminal.

    Raises `InputError` when an argument is wrong, `out` is not empty, nothing usable is there, or for a strict defect.
    """
    source, target = Path(audio_dir), Path(out).resolve()
    threads = workers if workers is not None else os.cpu_count() or 1
    if threads < 1 or clips_per_shard < 1:
        raise InputError(f"workers is {threads} and clips_per_shard {clips_per_shard}; expected at least 1 of each")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: already there and not empty; give another directory or remove it")
    table = read_captions(captions) if captions is not None else None
    candidates = find_candidates(source, table)
    if not candidates:
        raise InputError(f"audio folder {source}: no audio files; expected {', '.join(AUDIO_SUFFIXES)}")
    work = target.with_name(f".{target.name}.packing")
    _prepare_work(work, _plan(candidates, table.digest if table else "", clips_per_shard))
    try:
        ranges = _pack_ranges(work, source, candidates, strict, threads, clips_per_shard, progress)
        report = _finish(work, source, target, ranges)
    except InputError:
        shutil.rmtree(work)
        raise
    shutil.rmtree(work)
    return report


def _plan(candidates: Sequence[Candidate], captions_digest: str, clips_per_shard: int) -> bytes:
    """A digest of everything that decides the bytes of the shards."""
    settings = {
        "version": VERSION,
        "clips_per_shard": clips_per_shard,
        "seconds": [MIN_SECONDS, MAX_SECONDS],
        "libraries": [sf.__version__, sf.__libsndfile_version__, soxr.__version__],
        "captions": captions_digest,
        "files": [[candidate.name, *candidate.stamp] for candidate in candidates],
    }
    return json.dumps({"digest": hashlib.sha256(json.dumps(settings).encode()).hexdigest()}).encode()


def _prepare_work(work: Path, plan: bytes) -> None:
    plan_path = work / "plan.json"
    if work.exists() and not (plan_path.is_file() and plan_path.read_bytes() == plan):
        shutil.rmtree(work)
    for folder in ("ranges", "shards"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    write_atomically(plan_path, plan)


def _pack_ranges(
    work: Path,
    source: Path,
    candidates: Sequence[Candidate],
    strict: bool,
    threads: int,
    clips_per_shard: int,
    progress: bool,
) -> list[_Range]:
    ranges = _finished(work, -(-len(candidates) // clips_per_shard))
    if strict:
        for finished in ranges:
            _refuse_defects(source, finished.rows)
    start = len(ranges) * clips_per_shard
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pack")
    try:
        with _progress_bar(progress) as bar:
            task = bar.add_task("packing", total=len(candidates), completed=min(start, len(candidates)))
            encoded = _encode_ahead(pool, candidates[start:], 2 * threads)
            for first in range(start, len(candidates), clips_per_shard):
                name = f"shard-{sum(done.shard is not None for done in ranges):06d}.tar"
                current = _Range()
                with ShardWriter(work / "shards" / name) as writer:
                    for at in range(first, min(first + clips_per_shard, len(candidates))):
                        rows = _add(writer, current, f"{at:09d}", candidates[at], *next(encoded))
                        if strict:
                            _refuse_defects(source, rows)
                        bar.advance(task)
                    if writer.clip_digests:
                        _commit(writer, current, name)
                write_atomically(_record_path(work, len(ranges)), json.dumps(vars(current)).encode())
                ranges.append(current)
    finally:
        pool.shutdown(cancel_futures=True)
    return ranges


def _finished(work: Path, count: int) -> list[_Range]:
    """The ranges, from the first on, whose record and shard are there."""
    ranges: list[_Range] = []
    for number in range(count):
        try:
            record = json.loads(_record_path(work, number).read_bytes())
            finished = _Range(**record | {"rows": [ReportRow(*row) for row in record["rows"]]})
            shard = finished.shard
            if shard is not None and (work / "shards" / shard["name"]).stat().st_size != shard["bytes"]:
                break
        except (OSError, ValueError, KeyError, TypeError):
            break
        ranges.append(finished)
    return ranges


def _record_path(work: Path, number: int) -> Path:
    return work / "ranges" / f"{number:06d}.json"


def _encode_ahead(
    pool: ThreadPoolExecutor, candidates: Sequence[Candidate], window: int
) -> Iterator[tuple[bytes, int, str]]:
    remaining = iter(candidates)
    pending: deque[Future[tuple[bytes, int, str]]] = deque()
    for candidate in islice(remaining, window):
        pending.append(pool.submit(_encode, candidate))
    while pending:
        yield pending.popleft().result()
        for candidate in islice(remaining, 1):
            pending.append(pool.submit(_encode, candidate))


def _encode(candidate: Candidate) -> tuple[bytes, int, str]:
    """FLAC bytes and samples at 16 kHz, or the reason why there are none."""
    if candidate.defect:
        return b"", 0, candidate.defect
    try:
        wave = read_audio(candidate.path, min_seconds=MIN_SECONDS, max_seconds=MAX_SECONDS)
    except AudioError as error:
        return b"", 0, error.reason
    return encode_flac_int16(wave), len(wave), ""


def _add(
    writer: ShardWriter, current: _Range, key: str, candidate: Candidate, flac: bytes, samples: int, reason: str
) -> list[ReportRow]:
    name = printable(candidate.name)
    rows = [ReportRow(name, WARNING, warning, "", 0.0) for warning in candidate.warnings]
    if reason:
        rows.append(ReportRow(name, SKIPPED, reason, "", 0.0))
    else:
        record = {
            "text": candidate.captions,
            "synthetic_text": candidate.synthetic_captions,
            "duration": samples / SAMPLE_RATE,
            "sample_rate": SAMPLE_RATE,
            "samples": samples,
            "source": candidate.name,
        }
        writer.add(key, flac, record)
        rows.append(ReportRow(name, KEPT, "", key, samples / SAMPLE_RATE))
        current.samples += samples
        current.captions += len(candidate.captions)
        current.synthetic_captions += len(candidate.synthetic_captions)
        current.captioned_clips += bool(candidate.captions or candidate.synthetic_captions)
    current.rows.extend(rows)
    return rows


def _commit(writer: ShardWriter, current: _Range, name: str) -> None:
    size, sha256 = writer.commit()
    current.digests = writer.clip_digests
    current.shard = {
        "name": name,
        "clips": len(writer.clip_digests),
        "seconds": current.samples / SAMPLE_RATE,
        "bytes": size,
        "sha256": sha256,
    }


def _refuse_defects(source: Path, rows: Sequence[ReportRow]) -> None:
    for row in rows:
        if row.status != KEPT:
            raise InputError(f"{source / row.file}: {row.reason}; repair the corpus, or pack without strict to skip it")


def _finish(work: Path, source: Path, target: Path, ranges: Sequence[_Range]) -> PackReport:
    """Write the directory's own files and move it to its place."""
    rows = [row for done in ranges for row in done.rows]
    shards = [done.shard for done in ranges if done.shard is not None]
    samples = sum(done.samples for done in ranges)
    report = PackReport(
        out=target,
        kept=sum(shard["clips"] for shard in shards),
        skipped=dict(Counter(row.reason for row in rows if row.status == SKIPPED).most_common()),
        warnings=dict(Counter(row.reason for row in rows if row.status == WARNING).most_common()),
        seconds=samples / SAMPLE_RATE,
    )
    if not shards:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in report.skipped.items())
        raise InputError(f"audio folder {source}: none of {len(rows)} files is usable ({reasons}); expected 1 to 300 s")
    index = {
        "format": FORMAT,
        "version": VERSION,
        "sample_rate": SAMPLE_RATE,
        "clips": report.kept,
        "captions": sum(done.captions for done in ranges),
        "synthetic_captions": sum(done.synthetic_captions for done in ranges),
        "captioned_clips": sum(done.captioned_clips for done in ranges),
        "seconds": report.seconds,
        "fingerprint": hashlib.sha256("".join(d for done in ranges for d in done.digests).encode()).hexdigest(),
        "shards": shards,
    }
    folder = work / "shards"
    write_report(folder, rows)
    write_atomically(folder / SIZES_NAME, json.dumps({shard["name"]: shard["clips"] for shard in shards}).encode())
    write_atomically(folder / INDEX_NAME, json.dumps(index, indent=1).encode())
    folder.rename(target)
    return report


class _FilesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} files/s" if task.speed else "")


def _progress_bar(wanted: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _FilesPerSecond())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not (wanted and console.is_terminal))
