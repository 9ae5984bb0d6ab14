"""Lists of YouTube clips as AudioSet and ACAV100M publish them: a csv of id and start, and a folder of clips."""

from collections.abc import Iterator

from .audio_index import AudioIndex
from .entry import Entry, make_entry
from .records import csv_rows
from .source import Source

_IDS = ("youtube_id", "ytid", "video_id", "id")
_STARTS = ("start", "start_seconds", "start_time")


def read_id_list(source: Source, index: AudioIndex) -> Iterator[Entry]:
    """The clips of a csv whose first two columns are YouTube id and start in seconds; what follows is not read.

    A header and lines that begin with # are passed over. The id is `<youtube id>_<start>`, and audio is called so, or
    as the YouTube id alone, also with a Y before it; a start of 30.000 is one of 30.
    """
    assert source.metadata is not None
    for row in csv_rows(source.metadata, source.encoding, spaced=True):
        if row.problem:
            yield Entry("", row.where, problem=row.problem)
            continue
        youtube, start = row.values[0].strip(), row.values[1].strip() if len(row.values) > 1 else ""
        if youtube.startswith("#") or (youtube.lower() in _IDS and start.lower() in ("", *_STARTS)):
            continue
        if "." in start:
            start = start.rstrip("0").rstrip(".")
        id = f"{youtube}_{start}" if start else youtube
        yield make_entry(source.kind, id, row.where, index.find(id, youtube, f"Y{youtube}"))
