"""Ids of Freesound and YouTube in the forms in which datasets give them; no file is ever looked for under an id."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

from ...errors import InputError

Namespace = Literal["freesound", "youtube", "both", "none"]
"""Whose ids a source has; `both` decides by the form of each id, `none` has ids that nobody else knows."""

NAMESPACES: Mapping[str, Namespace] = {
    "audiocaps": "youtube",
    "audioset": "youtube",
    "acav": "youtube",
    "acav100m": "youtube",
    "vggsound": "youtube",
    "freesound": "freesound",
    "fsd50k": "freesound",
    "wavcaps": "both",
}
"""Of the sources whose names are known, in lower case."""
_LAYOUTS: Mapping[str, Namespace] = {
    "ids": "youtube",
    **{name: NAMESPACES[name] for name in ("audiocaps", "freesound", "wavcaps")},
}

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
_FREESOUND_URL = re.compile(r"freesound\.org/(?:.*/)?(?:sounds|s)/(\d{1,9})(?:[/?#]|$)")
_FREESOUND = re.compile(r"(\d{1,9})(?:__.*)?")  # Freesound names a download 12345__author__title.wav
_YOUTUBE_URL = re.compile(r"(?:[?&]v=|youtu\.be/|/embed/|/shorts/)([A-Za-z0-9_-]{11})(?:[&?#/]|$)")
# AudioSet's tools put a Y before an id, because of those that begin with a hyphen.
_YOUTUBE = re.compile(
    r"(?:Y(?=[A-Za-z0-9_-]{11}(?:_\d+(?:\.\d+)?){0,2}$))?([A-Za-z0-9_-]{11})((?:_\d+(?:\.\d+)?){0,2})"
)


class YouTubeId(NamedTuple):
    """A video, and which part of it."""

    video: str
    """The 11 characters."""
    start: float | None = None
    """Seconds from the beginning of the video."""
    end: float | None = None


def freesound_id(text: str) -> str | None:
    """The number in `12345`, `12345.wav`, `12345__author__title.wav` or a Freesound address; None for anything else."""
    text = text.strip()
    if found := _FREESOUND_URL.search(text):
        return found[1].lstrip("0") or None
    found = None if "://" in text else _FREESOUND.fullmatch(_bare(text))
    return (found[1].lstrip("0") or None) if found else None


def youtube_id(text: str) -> YouTubeId | None:
    """The video in `<id>`, `Y<id>.wav`, `<id>_30`, `<id>_30.000_40.000`, `<id>_000030.mp4` or an address.

    None for anything else.
    """
    text = text.strip()
    if found := _YOUTUBE_URL.search(text):
        return YouTubeId(found[1])
    found = _YOUTUBE.fullmatch(_bare(text))
    if not found or "://" in text:
        return None
    seconds = [float(part) for part in found[2].split("_")[1:]]
    return YouTubeId(found[1], *seconds)


def ingested_sources(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Name and layout of the sources that `ingest` read for a manifest, by its `provenance`."""
    settings, found = provenance.get("settings"), dict[str, str]()
    if isinstance(settings, dict):
        several = settings.get("sources")
        for made in [settings.get("source"), *(several if isinstance(several, list) else [])]:
            if isinstance(made, dict):
                found |= {str(made["name"]): str(made["layout"])} if {"name", "layout"} <= made.keys() else {}
                found |= ingested_sources(made)
    return found


def parse_namespaces(pairs: Sequence[str], layouts: Mapping[str, str] | None = None) -> dict[str, Namespace]:
    """Whose ids each source has; all that are not named have `none`.

    Those of `pairs` (`source=namespace`) are over `NAMESPACES`, and these over what `layouts`, by source, tell. Raises
    `InputError` for another form.
    """
    namespaces: dict[str, Namespace] = {
        name: _LAYOUTS[layout] for name, layout in (layouts or {}).items() if layout in _LAYOUTS
    }
    namespaces |= NAMESPACES
    for pair in pairs:
        source, sign, namespace = pair.rpartition("=")
        if not sign or not source or namespace not in get_args(Namespace):
            raise InputError(
                f"namespaces: {pair!r:.80} is none; expected source=namespace, a namespace being one of "
                f"{', '.join(get_args(Namespace))}"
            )
        namespaces[source.lower()] = cast("Namespace", namespace)
    return namespaces


def _bare(text: str) -> str:
    """The last part of a path, without the extension."""
    return _SUFFIX.sub("", text.replace("\\", "/").rstrip("/").rpartition("/")[2])
