"""Merging packed directories: their clips, one directory after another, with new keys, and not encoded again."""

import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..file_lock import locked
from .pack_report import REPORT_NAME, ReportRow, read_report, write_report
from .progress import progress_bar
from .shard_writer import ShardWriter, sha256_of
from .shards import Shards
from .shards_files import read_index
from .shards_index import ShardIndex, ShardTotals, refuse_full, shard_entry, shard_name


class _Member(NamedTuple):
    """A clip as its bytes."""

    flac: bytes
    record: bytes
    samples: int
    captions: int
    synthetic_captions: int


def merge_shards(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    clips_per_shard: int = 512,
    progress: bool = True,
) -> ShardIndex:
    """Write the clips of `folders`, in that order, into one packed directory `out`; returns its index.

    Members are copied byte for byte, keys are given anew, the reports are joined; merging the parts of a merge gives
    the same bytes as merging all at once. Everything is written beside `out` and moved there at the end. Each tar is
    compared with its SHA-256 first; nothing is decoded (`cacophony shards check` does).

    Raises `InputError` when `out` is not empty, or a directory is none, is damaged or is of another version.
    """
    if not folders or clips_per_shard < 1:
        raise InputError(
            f"{len(folders)} directories to merge, clips_per_shard {clips_per_shard}; expected at least 1 of each"
        )
    target = Path(out).resolve()
    refuse_full(target)
    work = target.with_name(f".{target.name}.merging")
    with locked(work, "merging"):
        try:
            refuse_full(target)  # another process may just have written it
            whole = work / "shards"
            shutil.rmtree(whole, ignore_errors=True)  # of a process that was killed
            whole.mkdir()
            parts = list(map(Shards.open, folders))
            index = _copy(parts, whole, clips_per_shard, progress)
            write_report(whole, _rows(parts))
            index.write(whole)
            whole.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return index


def _copy(parts: list[Shards], work: Path, clips_per_shard: int, progress: bool) -> ShardIndex:
    index = ShardIndex()
    clips, total = _members(parts), sum(map(len, parts))
    with progress_bar(progress, "clips") as bar:
        task = bar.add_task("merging", total=total)
        for first in range(0, total, clips_per_shard):
            name, totals = shard_name(len(index.shards)), ShardTotals()
            with ShardWriter(work / name) as writer:
                for at in range(first, min(first + clips_per_shard, total)):
                    clip = next(clips)
                    writer.add_members(f"{at:09d}", clip.flac, clip.record)
                    totals.add(clip.samples, clip.captions, clip.synthetic_captions)
                    bar.advance(task)
                entry = shard_entry(name, len(writer.clip_digests), totals.samples, *writer.commit())
                index.add(entry, totals, writer.clip_digests)
    return index


def _members(parts: list[Shards]) -> Iterator[_Member]:
    for shards in parts:
        numbers = iter(range(len(shards)))
        with shards:
            for shard in read_index(shards.path)["shards"]:
                tar = shards.path / shard["name"]
                if sha256_of(tar) != shard.get("sha256"):
                    raise InputError(f"{tar}: its bytes are not those that were packed (SHA-256); copy the shard again")
                for i in islice(numbers, shard["clips"]):
                    clip = shards.clip(i)
                    flac, record = shards.members(i)
                    yield _Member(flac, record, clip.samples, len(clip.captions), len(clip.synthetic_captions))


def _rows(parts: list[Shards]) -> Iterator[ReportRow]:
    """The rows of all reports, with the new keys: clips were kept in the order of the reports."""
    at = 0
    for shards in parts:
        end = at + len(shards)
        for row in read_report(shards.path):
            if row.key:
                yield row._replace(key=f"{at:09d}")
                at += 1
            else:
                yield row
        if at != end:
            raise InputError(f"{shards.path / REPORT_NAME}: does not name the {len(shards)} clips; copy it again")
