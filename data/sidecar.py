"""Captions of LAION-style corpora: beside each audio file, or in the same tar, a json object with `text`."""

import json
from typing import NamedTuple

from .captions import Captions, usable_captions

MAX_BYTES = 1 << 20
"""Size of a json file that is read; audio that has a larger one is skipped."""

NO_SIDECAR = "no json file with captions"
BAD_SIDECAR = "json file that is no object with text"
LARGE_SIDECAR = f"json file over {MAX_BYTES} bytes"


class Sidecar(NamedTuple):
    """What a json file says of its audio."""

    captions: Captions
    """What of its `text` may be packed."""
    defect: str
    """Why the audio cannot be packed; empty where it can."""


def read_sidecar(data: bytes) -> Sidecar:
    """The captions in a json object: `text`, a string or a list of strings; tags, original_data and others stay unread.

    `data` need hold no more than `MAX_BYTES + 1` bytes of the file.
    """
    nothing = Captions((), ())
    if len(data) > MAX_BYTES:
        return Sidecar(nothing, LARGE_SIDECAR)
    try:
        text = json.loads(data)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Sidecar(nothing, BAD_SIDECAR)
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return Sidecar(nothing, BAD_SIDECAR)
    captions = usable_captions(texts)
    if captions.texts:
        return Sidecar(captions, "")
    return Sidecar(nothing, captions.dropped[0] if captions.dropped else BAD_SIDECAR)
