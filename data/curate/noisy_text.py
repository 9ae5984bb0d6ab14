"""What the cleaner reads of a noisy clip: its description or, where that is empty, its title and tags."""

import hashlib
import json

from .manifest import Row

MAX_CHARACTERS = 2_000
"""Of a description; what comes after is seldom about the sound, and an endpoint is paid for it."""


def cleaner_inputs(row: Row) -> list[str]:
    """One text for each description of the clip; one of title and tags where there is none; none where all is empty.

    White space is evened out, and a text over `MAX_CHARACTERS` is cut between words.
    """
    texts = [text for text in map(_tidy, row["texts"]) if text]
    if texts:
        return texts
    title, tags = _tidy(row["title"]), _tidy(", ".join(row["tags"]))
    parts = [f"{name}: {text}" for name, text in (("Title", title), ("Tags", tags)) if text]
    return [_tidy(" | ".join(parts))] if parts else []


def is_cut(text: str) -> bool:
    """Whether `cleaner_inputs` leaves a part of `text` out."""
    return len(" ".join(text.split())) > MAX_CHARACTERS


def digest_of(*parts: object) -> str:
    """SHA-256 of the parts as JSON, hexadecimal; a lone surrogate counts as its escape."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tidy(text: str) -> str:
    text = " ".join(text.split())
    if len(text) <= MAX_CHARACTERS:
        return text
    cut = text[: MAX_CHARACTERS + 1]
    return (cut.rpartition(" ")[0] or cut[:MAX_CHARACTERS])[:MAX_CHARACTERS]
