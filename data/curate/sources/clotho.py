"""Clotho: a csv per split with five captions a row, a folder of clips named in it, and a csv of licences."""

from collections.abc import Iterator

from ...captions import normal_name
from .audio_index import AudioIndex
from .entry import Entry, make_entry, text_of
from .records import csv_records
from .source import Source

_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read_clotho(source: Source, index: AudioIndex) -> Iterator[Entry]:
    """The clips of `clotho_captions_<split>.csv` (file_name, caption_1 … caption_5); audio is `<split>/<file_name>`.

    Licences are those of `clotho_metadata_<split>.csv`, where it is there; it is held in memory (1 MB as published).
    """
    licences: dict[str, str] = {}
    metadata = source.audio / f"clotho_metadata_{source.split}.csv"
    if metadata.exists():
        for record in csv_records(metadata, source.encoding, ("file_name", "license")):
            if record.problem:
                yield Entry("", record.where, problem=record.problem)
            else:
                licences[normal_name(record.values["file_name"])] = record.values["license"]
    path = source.audio / f"clotho_captions_{source.split}.csv"
    for record in csv_records(path, source.encoding, ("file_name", *_CAPTIONS)):
        if record.problem:
            yield Entry("", record.where, problem=record.problem)
            continue
        name = text_of(record.values["file_name"])
        texts, licence = [record.values[column] for column in _CAPTIONS], licences.get(normal_name(name))
        yield make_entry(source.kind, name, record.where, index.find(name), texts=texts, licence=licence)
