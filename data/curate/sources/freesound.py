"""Freesound-style metadata: json lines, a json list or a csv, and a folder of clips named by their ids."""

from collections.abc import Iterator
from typing import Any

from .audio_index import AudioIndex
from .entry import Entry, make_entry, text_of
from .records import records
from .source import Source


def read_freesound(source: Source, index: AudioIndex) -> Iterator[Entry]:
    """The clips of records with id (or sound_id) and any of title (or name), description, tags and license.

    Audio is called `<id>.wav` or, as downloaded, `<id>__<user>__<title>.wav`, with any extension, in any folder.
    """
    assert source.metadata is not None
    for record in records(source.metadata, source.encoding):
        if record.problem:
            yield Entry("", record.where, problem=record.problem)
            continue
        values = record.values
        id = text_of(_first(values, "id", "sound_id", "freesound_id"))
        yield make_entry(
            source.kind,
            id,
            record.where,
            index.find(id),
            texts=_first(values, "description"),
            title=_first(values, "title", "name"),
            tags=_first(values, "tags"),
            licence=_first(values, "license", "licence"),
        )


def _first(values: dict[str, Any], *keys: str) -> Any:
    return next((values[key] for key in keys if values.get(key) is not None), None)
