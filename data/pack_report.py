"""What packing tells: a row per file in `report.csv`, and the counts for the terminal."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .shard_writer import atomic_file

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
    layout: str
    """How the corpus was read."""

    def summary(self) -> list[str]:
        """Lines for the terminal: what was kept, the counts by reason, and where each file is named."""
        lines = [f"read as {self.layout}", f"kept {self.kept} clips, {self.seconds / 3600:.2f} h, in {self.out}"]
        lines += [f"skipped {count}: {reason}" for reason, count in self.skipped.items()]
        lines += [f"dropped {count}: {reason}" for reason, count in self.warnings.items()]
        return [*lines, f"each file is named in {self.out / REPORT_NAME}"]


def write_report(folder: Path, rows: Iterable[ReportRow]) -> None:
    """Write `report.csv` (UTF-8, a header line, seconds with ms) into `folder`, row by row."""
    with atomic_file(folder / REPORT_NAME) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(ReportRow._fields)
        writer.writerows(row._replace(seconds=f"{row.seconds:.3f}" if row.key else "") for row in rows)
        text.detach()


def read_report(folder: Path) -> Iterator[ReportRow]:
    """The rows of `report.csv`, one by one; raises `InputError` when it is missing or of another form."""
    path = folder / REPORT_NAME
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            if next(reader, None) != list(ReportRow._fields):
                raise ValueError(f"expected the columns {', '.join(ReportRow._fields)}")
            for name, status, reason, key, seconds in reader:
                yield ReportRow(name, status, reason, key, float(seconds or 0))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; copy it again, or pack again") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: not the report of a packed directory ({error}); copy it again") from error
