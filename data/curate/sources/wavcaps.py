"""WavCaps: one json that lists id, title, description and a caption that a machine wrote, and a folder of clips."""

from collections.abc import Iterator

from .audio_index import AudioIndex
from .entry import Entry, make_entry, text_of
from .records import json_list
from .source import Source


def read_wavcaps(source: Source, index: AudioIndex) -> Iterator[Entry]:
    """The clips of the list; audio is called as the id is, with or without an extension, in any folder.

    Of a noisy source (the default) the text is the description as its author wrote it, which `clean` shall clean; of
    one that the user calls clean it is the caption, one or several.
    """
    assert source.metadata is not None
    for record in json_list(source.metadata, source.encoding):
        if record.problem:
            yield Entry("", record.where, problem=record.problem)
            continue
        values = record.values
        id = text_of(values.get("id", values.get("audio")))
        yield make_entry(
            source.kind,
            id,
            record.where,
            index.find(id),
            texts=values.get("caption" if source.kind == "clean" else "description"),
            title=values.get("title"),
            tags=values.get("tags"),
            licence=values.get("license"),
        )
