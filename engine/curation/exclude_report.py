"""What `cacophony curate exclude` found: pairs, counts, and the scores of all clips as a picture."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...data.curate.exclude import Thresholds, report_name
from ...data.curate.manifest import Manifest, arrow
from ...data.shard_writer import atomic_file
from ...errors import InputError
from ...extras import require
from ...json_file import write_json
from ..drawing import COLOURS, FAINT, INK, plain_axes, save_figure

PAIRS_NAME, SCORES_NAME, SUMMARY_NAME = "pairs.csv", "scores.png", "summary.json"
COLUMNS: tuple[str, ...] = ("source", "id", "path", "evaluation_clip", "pass", "score")

_BINS = 100


@dataclass
class Scores:
    """The scores of one pass, of clips that it found and of those it did not."""

    threshold: float
    counts: np.ndarray = field(default_factory=lambda: np.zeros((2, _BINS), np.int64))
    """`[not found or found, bin]`, from 0 to 1."""
    lowest_found: float | None = None
    highest_kept: float | None = None

    def add(self, score: float, *, found: bool) -> None:
        """Count one clip."""
        self.counts[int(found), min(_BINS - 1, max(0, int(score * _BINS)))] += 1
        if found:
            self.lowest_found = score if self.lowest_found is None else min(score, self.lowest_found)
        else:
            self.highest_kept = score if self.highest_kept is None else max(score, self.highest_kept)


def write_report(result: Manifest, folder: Path, thresholds: Thresholds, failed: Mapping[str, str]) -> list[str]:
    """Write pairs.csv, scores.png and summary.json on `result`, a manifest of `exclude`; returns lines to print.

    `failed` are the evaluation clips that could not be decoded, with the reasons.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = {"fingerprint": Scores(thresholds.similarity), "embedding": Scores(thresholds.cosine)}
    by_pass = Counter[str]()
    with atomic_file(folder / PAIRS_NAME) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in _rows(result):
            if row["found"]:
                writer.writerow(row)
                by_pass[row["pass"]] += 1
            if row["pass"] in scores:
                scores[row["pass"]].add(row["score"], found=row["found"])
        text.flush()
        text.detach()
    shown = {name: of for name, of in scores.items() if of.counts.any()}
    if shown:
        save_figure(scores_figure(shown), folder / SCORES_NAME)
    summary = {
        "clips": result.rows,
        "by_source_and_reason": result.counts,
        "evaluation_clips_not_compared": dict(failed),
        "found_by_pass": dict(sorted(by_pass.items())),
        "scores": {
            name: {"threshold": of.threshold, "lowest_found": of.lowest_found, "highest_kept": of.highest_kept}
            for name, of in shown.items()
        },
    }
    write_json(folder / SUMMARY_NAME, summary)
    lines = [f"{count} evaluation clips were not compared: {why}" for why, count in Counter(failed.values()).items()]
    return lines + _lines(result, by_pass, shown)


def scores_figure(scores: dict[str, Scores]) -> Figure:
    """A histogram for each pass that gives scores: the nearest evaluation clip of every clip, and the threshold.

    A clip whose fingerprint is near none has no score.
    """
    figure = Figure(figsize=(8, 2.6 * len(scores)), layout="constrained")
    middles = (np.arange(_BINS) + 0.5) / _BINS
    for axes, (name, of) in zip(np.atleast_1d(figure.subplots(len(scores))), scores.items(), strict=True):
        plain_axes(axes)
        axes.bar(middles, of.counts[0], 1 / _BINS, color=COLOURS[0], label="kept")
        axes.bar(middles, of.counts[1], 1 / _BINS, bottom=of.counts[0], color=COLOURS[3], label="excluded")
        axes.axvline(of.threshold, color=INK, linewidth=1)
        side = "right" if of.threshold > 0.8 else "left"
        place = {"transform": axes.get_xaxis_transform(), "va": "top", "ha": side, "color": INK}
        axes.text(of.threshold, 0.97, f" {of.threshold:g} ", **place)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 1)
        axes.set_title(f"{name}: cosine with the nearest evaluation clip", color=INK, fontsize=10, loc="left")
        axes.set_ylabel("clips", color=FAINT)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _rows(result: Manifest) -> Iterator[dict[str, Any]]:
    pq = require("pyarrow.parquet", "pyarrow", "a manifest", extra="curate")
    for number in range(len(result.parts)):
        path = result.folder / report_name(number)
        try:
            yield from pq.ParquetFile(path).read().to_pylist()
        except (OSError, arrow().ArrowException) as error:
            raise InputError(
                f"{path}: cannot be read as Parquet ({error}); exclude again into another folder"
            ) from error


def _lines(result: Manifest, by_pass: Counter[str], scores: dict[str, Scores]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    totals = Counter[str]()
    for key, count in sorted(result.counts.items()):
        source, sign, reason = key.partition(": ")
        reason = reason if sign else key
        totals[reason] += count
        reasons.setdefault(reason, []).append(f"{source} {count}" if sign else "")
    lines = [f"{result.rows} clips in {result.folder}"]
    for reason, count in totals.most_common():
        of_sources = ", ".join(filter(None, reasons[reason]))
        lines.append(f"  {reason}: {count}" + (f" ({of_sources})" if of_sources else ""))
    lines += [f"  found by {name}: {count}" for name, count in sorted(by_pass.items())]
    for name, of in scores.items():
        found = "none" if of.lowest_found is None else f"{of.lowest_found:.4f}"
        kept = "none" if of.highest_kept is None else f"{of.highest_kept:.4f}"
        lines.append(f"  {name}: lowest score found {found}, highest score kept {kept}, threshold {of.threshold:g}")
    return lines
