"""Pairs of a noisy description and what a model answered: JSON lines, to read and correct before they are learnt from.

{"source": "freesound", "id": "1234", "text": "…", "answer": "…", "outcome": "caption", "caption": "…", "flags": []}
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..shard_writer import atomic_file
from .noisy_text import MAX_CHARACTERS
from .prompt import OUTCOMES, Outcome

PAIRS_NAME = "pairs.jsonl"
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Pair:
    """One description and its answer."""

    source: str
    id: str
    """Of the clip."""
    text: str
    """What the model was given of it."""
    answer: str
    """As it came."""
    outcome: Outcome
    caption: str
    """The caption in the answer; empty where there is none."""
    flags: tuple[str, ...]
    """What `residue` found in the caption, sorted."""


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write all pairs, or nothing."""
    with atomic_file(path) as file:
        for pair in pairs:
            # Escaped: an answer may hold what is no Unicode.
            file.write(json.dumps(asdict(pair)).encode() + b"\n")


def read_pairs(path: Path) -> Iterator[Pair]:
    """The pairs of a file, one by one; raises `InputError` that names the line where one is damaged."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); expected the pairs of cacophony curate label") from None
    with file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES):
            number += 1
            try:
                yield _pair(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: not a pair ({error}); correct or remove the line") from None


def _pair(entry: Any) -> Pair:
    if not isinstance(entry, dict):
        raise ValueError(f"a {type(entry).__name__}")
    flags, outcome = entry.get("flags"), entry.get("outcome")
    if outcome not in OUTCOMES:
        raise ValueError(f"outcome is {outcome!r:.40}; expected one of {', '.join(OUTCOMES)}")
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise ValueError(f"flags is {flags!r:.40}; expected a list of strings")
    source, id, text, answer, caption = (_string(entry, name) for name in ("source", "id", "text", "answer", "caption"))
    pair = Pair(source, id, text, answer, outcome, caption, tuple(flags))
    if (outcome == "caption") != bool(pair.caption.strip()) or len(pair.text) > MAX_CHARACTERS:
        raise ValueError("a caption that is empty, one without outcome caption, or a text that is too long")
    return pair


def _string(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.40}; expected a string")
    return value
