"""LAION's layout: beside each audio file a json with its text. Tars have to be unpacked first."""

import json
from collections.abc import Iterator
from typing import Any

from ...corpus import BAD_NAME, sidecar_name
from ...sidecar import MAX_BYTES, NO_SIDECAR, read_sidecar
from .audio_index import AudioIndex, Found
from .entry import Entry, make_entry
from .source import Source


def read_laion(source: Source, index: AudioIndex) -> Iterator[Entry]:
    """All audio under the folder, by name; the id is the path relative to it.

    The json has `text`, a string or several, and may have `tag` and, in `original_data`, `title` and `license`.
    """
    for name, readable in index.names():
        if not readable:
            yield Entry(name, name, problem=BAD_NAME)
            continue
        try:
            with open(index.path(sidecar_name(name)), "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError:
            yield Entry(name, name, problem=NO_SIDECAR)
            continue
        said = read_sidecar(data)
        if said.defect and source.kind != "unlabeled":
            yield Entry(name, name, problem=said.defect)
            continue
        # The id is the disk's own, so it may name folders; everything else is made as for other layouts.
        made = make_entry(source.kind, "-", name, Found(index.path(name)), texts=said.captions.texts, **_more(data))
        yield made._replace(id=name, dropped=(*said.captions.dropped, *made.dropped))


def _more(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    original = content.get("original_data")
    original = original if isinstance(original, dict) else {}
    return {
        "tags": content.get("tag"),
        "title": original.get("title"),
        "licence": original.get("license", content.get("license")),
    }
