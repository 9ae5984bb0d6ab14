"""The card of a data set, in markdown: what is in it, what is not and why, whose it is, and how it was made."""

import json
from collections.abc import Iterable
from typing import Any

from ...data.audio import printable
from ...data.curate.manifest import Manifest
from .mix_stats import MixStats, Share, stages_of

SOURCES_PNG = "sources.png"
LENGTHS_PNG = "lengths.png"

_MAX_LICENCES = 100
_MAX_CELL = 120


def card(manifest: Manifest, stats: MixStats, tokenizer: str) -> str:
    """The markdown; `tokenizer` is one sentence on which one counted the tokens."""
    total = stats.total
    stages = stages_of(manifest)
    return "\n".join(
        [
            "# Data set",
            "",
            f"{total.clips} clips, {total.seconds / 3600:.2f} h, {total.captions} captions and {total.synthetic} that "
            "a model wrote of the audio. A clip that the mix repeats counts as often as it is there.",
            "",
            f"![hours and clips of each source]({SOURCES_PNG})",
            "",
            f"![lengths of clips and of captions]({LENGTHS_PNG})",
            "",
            f"{_sentence(tokenizer)}",
            "",
            "## Sources",
            "",
            *_table(
                ("source", "kind", *_COLUMNS),
                [(source, kind, *_cells(share)) for (source, kind), share in stats.shares.items()],
            ),
            "",
            "## Kinds",
            "",
            *_table(("kind", *_COLUMNS), [(kind, *_cells(share)) for kind, share in stats.by_kind().items()]),
            "",
            "clean: captions by people; noisy: descriptions that a model rewrote as captions; unlabeled: no text.",
            "",
            "## What was left out, and other counts",
            "",
            *_table(
                ("stage", "what", "count"),
                [(made["stage"], name, count) for made in stages for name, count in sorted(made["counts"].items())],
            ),
            "",
            "## Licences",
            "",
            *_licences(stats),
            "",
            "## How it was made",
            "",
            "A digest is the SHA-256 of the stage's manifest.json, which names the SHA-256 of every part.",
            *(line for made in stages for line in _stage(made)),
            "",
        ]
    )


_COLUMNS = ("clips", "hours", "captions", "by a model")


def _cells(share: Share) -> tuple[Any, ...]:
    return share.clips, f"{share.seconds / 3600:.2f}", share.captions, share.synthetic


def _licences(stats: MixStats) -> list[str]:
    counted = sorted(stats.licences.items(), key=lambda item: (-item[1], item[0]))
    rows = [(source, licence or "not stated", count) for (source, licence), count in counted[:_MAX_LICENCES]]
    lines = _table(("source", "licence", "clips"), rows)
    if len(counted) > _MAX_LICENCES:
        lines += ["", f"{len(counted) - _MAX_LICENCES} more are in the parts of the manifest."]
    return lines


def _stage(made: dict[str, Any]) -> Iterable[str]:
    settings = json.dumps(made["settings"], indent=1, ensure_ascii=True)
    yield from ("", f"### {_cell(made['stage'])}: {made['rows']} rows", "", f"`{_cell(made['digest'])}`", "")
    # A fence longer than any that a setting may hold.
    yield from ("``````json", settings.replace("``````", "`````\\u0060"), "``````")


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    names = list(header)
    lines = [_line(names), _line(["---"] * len(names))]
    return [*lines, *(_line(map(_cell, row)) for row in rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    """A text of others as it may stand in a table."""
    text = printable(str(value))
    text = text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 1]}…"
    for character in "\\|`*[]<>&":
        text = text.replace(character, f"\\{character}")
    return text


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
