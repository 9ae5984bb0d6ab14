"""Checking a packed directory: each shard in a process of its own, then what the index says of all of them together."""

import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..json_file import read_json
from .audio import SAMPLE_RATE, printable
from .progress import progress_bar
from .shards_files import INDEX_NAME, SIZES_NAME, read_index, stray_files
from .shards_index import ShardIndex, ShardTotals
from .tar_check import DIGESTS
from .workers import CRASHED, Workers

_MOST_SHOWN = 20
_COUNTS = ("clips", "samples", "captions", "synthetic", "captioned")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a packed directory."""

    file: str
    """Name of the shard or other file."""
    member: str
    """Name of the member, empty where it is not one member's problem."""
    reason: str
    """What is wrong, and what was expected."""
    source: str
    """The clip's source, empty where it is not known."""


@dataclass
class ShardsReport:
    """What a packed directory holds, and what is wrong with it."""

    folder: Path
    """The directory."""
    shards: int = 0
    """Shards in its index."""
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    """For each source clips, samples, captions, synthetic and captioned (clips that have a caption), as found."""
    problems: list[Problem] = field(default_factory=list)
    """Everything that is wrong; empty for data that can be trained on as they are."""
    duplicates: list[list[str]] = field(default_factory=list)
    """Clips with equal samples, as `shard:position`, the first of each group first; no problem by themselves."""

    def lines(self) -> list[str]:
        """The table per source, the problems and the duplicates, for the terminal."""
        width = max(map(len, [*self.sources, "source"]))
        lines = [f"{'source':{width}} {'clips':>9} {'hours':>9} {'captions':>9} {'synthetic':>9} {'problems':>9}"]
        wrong = Counter(problem.source for problem in self.problems)
        for name, counts in sorted(self.sources.items()):
            lines.append(f"{name:{width}} {_cells(counts, wrong[name])}")
        total = {kind: sum(counts[kind] for counts in self.sources.values()) for kind in _COUNTS}
        lines.append(f"{'(all)':{width}} {_cells(total, len(self.problems))}")
        copies = sum(len(group) - 1 for group in self.duplicates)
        lines.append(f"{copies} clips are copies of another (equal samples)" if copies else "no duplicates")
        lines += [f"  {' = '.join(group[:4])}{' = …' * (len(group) > 4)}" for group in self.duplicates[:_MOST_SHOWN]]
        lines += [f"{p.file}{': ' * bool(p.member)}{p.member}: {p.reason}" for p in self.problems[:_MOST_SHOWN]]
        if len(self.problems) > _MOST_SHOWN:
            lines.append(f"and {len(self.problems) - _MOST_SHOWN} more problems (--json names all)")
        return list(map(printable, lines))

    def content(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        return {
            "folder": str(self.folder),
            "shards": self.shards,
            "sources": self.sources,
            "problems": list(map(asdict, self.problems)),
            "duplicates": self.duplicates,
        }


def check_shards(folder: str | os.PathLike[str], *, workers: int | None = None, progress: bool = True) -> ShardsReport:
    """Decode and check everything in a packed directory, a shard at a time in each of `workers` processes.

    Compared are the tars with their `.idx`, their SHA-256 and sizes; the names, records, captions and samples of the
    clips; and the counts and the fingerprint of `index.json` with all of them. Files that should not be there, or are
    half written, are named. Memory grows by some dozens of bytes a clip.

    Raises `InputError` when the directory has no index that can be understood, `RunError` when processes cannot work.
    """
    count = workers if workers is not None else os.cpu_count() or 1
    if count < 1:
        raise InputError(f"workers is {count}; expected at least 1")
    path = Path(folder)
    index = read_index(path)
    report = ShardsReport(path, len(index["shards"]))
    report.problems += [Problem(name, "", f"not in {INDEX_NAME}", "") for name in stray_files(path, index)]
    jobs = ({"folder": str(path), "shard": shard} for shard in index["shards"])
    found, hashes, clips = ShardIndex(), [], []
    with Workers(count) as pool, progress_bar(progress, "shards") as bar:
        task = bar.add_task("checking", total=len(index["shards"]))
        for shard, answer in zip(index["shards"], pool.in_order("check", jobs), strict=True):
            bar.advance(task)
            if answer is None:
                report.problems.append(Problem(shard["name"], "", CRASHED, ""))
                continue
            report.problems += [Problem(shard["name"], *problem) for problem in answer.values["problems"]]
            digests = list(DIGESTS.iter_unpack(answer.data))
            found.add(shard, _count(report, answer.values["sources"]), (sha256.hex() for sha256, _ in digests))
            hashes.append(b"".join(pcm for _, pcm in digests))
            clips.append(len(digests))
    report.duplicates = _duplicates([shard["name"] for shard in found.shards], clips, b"".join(hashes))
    report.problems += _whole(path, index, found)
    return report


def _cells(counts: dict[str, int], problems: int) -> str:
    hours = counts["samples"] / SAMPLE_RATE / 3600
    return f"{counts['clips']:9} {hours:9.2f} {counts['captions']:9} {counts['synthetic']:9} {problems:9}"


def _count(report: ShardsReport, sources: dict[str, dict[str, int]]) -> ShardTotals:
    """Add a shard's counts to the report; its totals."""
    for name, counts in sources.items():
        sums = report.sources.setdefault(name, dict.fromkeys(_COUNTS, 0))
        for kind in _COUNTS:
            sums[kind] += counts[kind]
    kinds = ("samples", "captions", "synthetic", "captioned")
    return ShardTotals(*(sum(counts[kind] for counts in sources.values()) for kind in kinds))


def _duplicates(names: list[str], clips: list[int], hashes: bytes) -> list[list[str]]:
    """Groups of clips with equal hashes."""
    values = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
    if not len(values):
        return []
    order = np.lexsort(values.T)  # stable: within a group the clips keep their order
    ordered = values[order]
    bounds = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1
    starts, stops = np.concatenate([[0], bounds]), np.concatenate([bounds, [len(values)]])
    several = (stops - starts > 1) & ordered[starts].any(axis=1)  # zeros: not decoded
    first_clip = np.cumsum([0, *clips])
    groups: list[list[str]] = []
    for start, stop in zip(starts[several], stops[several], strict=True):
        group = order[start:stop]
        shards = np.searchsorted(first_clip, group, side="right") - 1
        groups.append([f"{names[s]}:{i - first_clip[s]}" for s, i in zip(shards, group, strict=True)])
    return sorted(groups)


def _whole(path: Path, index: dict[str, Any], found: ShardIndex) -> list[Problem]:
    """Where the two files of the directory say anything else than the shards."""
    content = found.content()
    problems = [
        Problem(INDEX_NAME, "", f"{name} is {index[name]}, the shards have {content[name]}", "")
        for name in ("clips", "captions", "synthetic_captions", "captioned_clips", "seconds", "fingerprint")
        if index[name] != content[name]
    ]
    try:
        if read_json(path / SIZES_NAME) != found.sizes():
            problems.append(Problem(SIZES_NAME, "", f"disagrees with {INDEX_NAME}", ""))
    except InputError as error:
        problems.append(Problem(SIZES_NAME, "", str(error), ""))
    return problems
