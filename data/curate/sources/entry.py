"""One clip as its collection lists it, with texts that may be used, or the reason why it is none."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from ...captions import BAD_CAPTION, EMPTY_CAPTION, is_utf8, usable_captions
from ..manifest import Kind
from .audio_index import Found

MAX_ID = 200
"""Characters of an id."""
MAX_SHORT = 1_000
"""Characters of a title and of a licence."""
MAX_TAG = 100
"""Characters of a tag."""
MAX_TAGS = 200
"""Tags of a clip."""

NO_ID = "no id"
BAD_ID = "id with a path separator, .. or what is not printable"
LONG_ID = f"id over {MAX_ID} characters"
NO_CAPTION = "no caption"
NO_DESCRIPTION = "neither title nor description nor tags"
NOT_A_TEXT = "a text of another type"
LONG_SHORT = f"title or licence over {MAX_SHORT} characters"
LONG_TAG = f"tag over {MAX_TAG} characters"
MANY_TAGS = f"more than {MAX_TAGS} tags"


class Entry(NamedTuple):
    """One clip of a collection."""

    id: str
    where: str
    """The file and the line that list it."""
    path: str = ""
    """Its audio, absolute; empty where there is a problem."""
    texts: tuple[str, ...] = ()
    title: str = ""
    tags: tuple[str, ...] = ()
    licence: str = ""
    problem: str = ""
    """Why it cannot be used; empty where it may."""
    dropped: tuple[str, ...] = ()
    """A reason for each text that was left out although the clip may be used."""


def check_id(id: str) -> str:
    """What is wrong with an id from a file of others; empty where nothing is."""
    if not id:
        return NO_ID
    if len(id) > MAX_ID:
        return LONG_ID
    return BAD_ID if "/" in id or "\\" in id or id in (".", "..") or not id.isprintable() else ""


def text_of(value: Any) -> str:
    """An id or another value that may be a number, as text; empty for None and for other types."""
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def make_entry(
    kind: Kind,
    id: str,
    where: str,
    found: Found,
    *,
    texts: Any = None,
    title: Any = None,
    tags: Any = None,
    licence: Any = None,
) -> Entry:
    """The entry of what a file says: `texts` and `tags` are a list or one string, all may be of a wrong type.

    Clean clips need a text and noisy ones a text, a title or a tag; of unlabeled ones no text is kept.
    """
    problem = check_id(id) or found.problem
    if problem:
        return Entry(id, where, problem=problem)
    dropped: list[str] = []
    rights = _short([licence], dropped)
    if kind == "unlabeled":
        return Entry(id, where, found.path, licence="".join(rights), dropped=tuple(dropped))
    given = _list(texts, dropped)
    usable = usable_captions(given)
    # A noisy clip need not have a description, and often has an empty one.
    dropped += [reason for reason in usable.dropped if kind == "clean" or reason != EMPTY_CAPTION]
    titles = _short([title], dropped)
    kept = _short(_words(tags, dropped), dropped, MAX_TAG, LONG_TAG)
    if len(kept) > MAX_TAGS:
        dropped.append(MANY_TAGS)
    if not usable.texts and (kind == "clean" or not (titles or kept)):
        return Entry(id, where, problem=dropped[0] if dropped else NO_CAPTION if kind == "clean" else NO_DESCRIPTION)
    return Entry(
        id,
        where,
        found.path,
        usable.texts,
        "".join(titles),
        tuple(kept[:MAX_TAGS]),
        "".join(rights),
        dropped=tuple(dropped),
    )


def _list(value: Any, dropped: list[str]) -> list[str]:
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    texts = [text for text in values if isinstance(text, str)]
    dropped += [NOT_A_TEXT] * (len(values) - len(texts))
    return texts


def _words(value: Any, dropped: list[str]) -> list[str]:
    """Tags: a list, or one string with commas or blanks between them."""
    if isinstance(value, str):
        return value.split(",") if "," in value else value.split()
    return _list(value, dropped)


def _short(values: Iterable[Any], dropped: list[str], limit: int = MAX_SHORT, too_long: str = LONG_SHORT) -> list[str]:
    kept = []
    for value in values:
        if value is not None and not isinstance(value, str):
            dropped.append(NOT_A_TEXT)
            continue
        text = (value or "").strip()
        if len(text) > limit:
            dropped.append(too_long)
        elif not is_utf8(text):
            dropped.append(BAD_CAPTION)
        elif text:
            kept.append(text)
    return kept
