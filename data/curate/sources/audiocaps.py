"""AudioCaps: a csv per split with a row per caption, and a folder of clips named by their YouTube ids."""

from collections.abc import Iterator

from .audio_index import AudioIndex
from .entry import Entry, make_entry, text_of
from .records import csv_records
from .source import Source


def read_audiocaps(source: Source, index: AudioIndex) -> Iterator[Entry]:
    """The clips of `<split>.csv` (audiocap_id, youtube_id, start_time, caption), in the order of their first rows.

    Audio is `<split>/<youtube_id>.wav`, or with `_<start_time>` behind the id. A clip's captions are all its rows, so
    the whole csv (12 MB as published) is held in memory.
    """
    clips: dict[tuple[str, str], list[tuple[str, str]]] = {}
    path = source.audio / f"{source.split}.csv"
    for record in csv_records(path, source.encoding, ("youtube_id", "start_time", "caption")):
        if record.problem:
            yield Entry("", record.where, problem=record.problem)
            continue
        youtube, start = text_of(record.values["youtube_id"]), text_of(record.values["start_time"])
        clips.setdefault((youtube, start), []).append((record.where, record.values["caption"]))
    for (youtube, start), rows in clips.items():
        id = f"{youtube}_{start}" if start and youtube else youtube
        texts = [text for _, text in rows]
        yield make_entry(source.kind, id, rows[0][0], index.find(id, youtube), texts=texts)
