"""What packing tells: a row per file in `report.csv`, and the counts for the terminal."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .shard_writer import write_atomically

REPORT_NAME = "report.csv"
KEPT = "kept"
SKIPPED = "skipped"
WARNING = "warning"


class ReportRow(NamedTuple):
    """A file that was kept or skipped, or something of it that was dropped (warning)."""

    file: str
    """Path relative to the audio folder."""
    status: str
    """kept, skipped or warning."""
    reason: str
    """The defect; empty for a file that was kept."""
    key: str
    """Name of the clip in the shards; empty for anything else."""
    seconds: float
    """Duration of the clip in the shards; 0 for anything else."""


@dataclass(frozen=True)
class PackReport:
    """What became of a corpus."""

    out: Path
    """The packed directory."""
    kept: int
    """Clips in the shards."""
    skipped: dict[str, int]
    """Files that were not packed, counted by reason, the most frequent first."""
    warnings: dict[str, int]
    """Captions that were dropped from clips that were kept, counted by reason."""
    seconds: float
    """Duration of all clips together."""

    def summary(self) -> list[str]:
        """Lines for the terminal: what was kept, the counts by reason, and where each file is named."""
        lines = [f"kept {self.kept} clips, {self.seconds / 3600:.2f} h, in {self.out}"]
        lines += [f"skipped {count}: {reason}" for reason, count in self.skipped.items()]
        lines += [f"dropped {count}: {reason}" for reason, count in self.warnings.items()]
        return [*lines, f"each file is named in {self.out / REPORT_NAME}"]


def write_report(folder: Path, rows: Sequence[ReportRow]) -> None:
    """Write `report.csv` (UTF-8, a header line, seconds with ms) into `folder`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(ReportRow._fields)
    writer.writerows(row._replace(seconds=f"{row.seconds:.3f}" if row.key else "") for row in rows)
    write_atomically(folder / REPORT_NAME, text.getvalue().encode())
