"""The few-shot prompt of `curate label`, and what its answers may look like."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ...errors import InputError
from ...json_file import read_json
from .noisy_text import digest_of

PROMPT_FILE = Path(__file__).with_name("prompt.txt")
EXAMPLES_FILE = Path(__file__).with_name("examples.toml")
EXAMPLES = 10
MAX_CAPTION_CHARACTERS = 300
MAX_CAPTION_WORDS = 50
_MAX_FILE_BYTES = 1 << 20

Outcome = Literal["caption", "none", "refused", "empty", "junk"]
"""caption: a usable one; none: the model found no sound in the text; refused: it would not answer; empty: it answered
with nothing; junk: something else than one sentence."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_LABEL = re.compile(r"(?:caption|answer|output)\s*:\s*", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}
_REFUSAL = re.compile(
    r"(?:i['’]?m (?:very |so )?sorry|i apologi[sz]e|sorry,|i (?:can ?not|can['’]?t|won['’]?t|will not|am unable|"
    r"am not able|must decline)|i['’]?m (?:unable|not able)|as an ai\b|as a language model|unfortunately, i\b)",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"[{}<>|\\\[\]]|`|\*\*|^#|^[-*•] |^\d+[.)] ")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffd\ud800-\udfff]")


@dataclass(frozen=True)
class Example:
    """A description and the caption that is wanted for it."""

    description: str
    caption: str


@dataclass(frozen=True)
class Prompt:
    """An instruction, and examples of it as earlier turns of the conversation."""

    instruction: str
    examples: tuple[Example, ...]

    def messages(self, text: str) -> list[dict[str, str]]:
        """The conversation whose answer is the caption of `text`, as chat messages."""
        turns = [{"role": "system", "content": self.instruction}]
        for example in self.examples:
            turns.append({"role": "user", "content": example.description})
            turns.append({"role": "assistant", "content": example.caption})
        return [*turns, {"role": "user", "content": text}]

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, hexadecimal."""
        return digest_of(self.messages(""))


def read_prompt(instruction: Path | None = None, examples: Path | None = None) -> Prompt:
    """The prompt of these files, or of those that ship with the package.

    Raises `InputError` where a file cannot be read, the instruction is empty, or there are not ten examples.
    """
    text = _read(instruction or PROMPT_FILE).strip()
    if not text:
        raise InputError(f"{instruction}: is empty; expected the instruction, as text")
    return Prompt(text, _examples(examples or EXAMPLES_FILE))


def read_answer(answer: str) -> tuple[Outcome, str]:
    """What a model's `answer` is, and the caption in it; "" where there is none.

    Only one sentence on one line is a caption, between quotation marks or behind `Caption:` at most: what has to be
    guessed at is junk. A caption is always a part of the answer, letter by letter.
    """
    text = answer.strip()
    label = _LABEL.match(text)
    text = text[label.end() :].strip() if label else text
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    if not text:
        return "empty", ""
    if text.rstrip(".").upper() == "NONE":
        return "none", ""
    if _REFUSAL.match(text):
        return "refused", ""
    return ("caption", text) if _is_caption(text) else ("junk", "")


def _is_caption(text: str) -> bool:
    words = text.split()
    return (
        len(text) <= MAX_CAPTION_CHARACTERS
        and 2 <= len(words) <= MAX_CAPTION_WORDS
        and not _CONTROL.search(text)
        and len(text.splitlines()) == 1
        and not _MARKUP.search(text)
        and not _LABEL.match(text)
        and text[0] not in _QUOTES
        and sum(character.isalpha() for character in text) * 3 > len(text)
    )


def _examples(path: Path) -> tuple[Example, ...]:
    expected = 'expected [[example]] tables (TOML) or {"example": [...]} (JSON) with description and caption'
    content = read_json(path) if path.suffix == ".json" else _read_toml(path)
    entries = content.get("example")
    if not isinstance(entries, list):
        raise InputError(f"{path}: has no list called example; {expected}")
    examples = tuple(_example(path, number, entry, expected) for number, entry in enumerate(entries, 1))
    if len(examples) != EXAMPLES:
        raise InputError(f"{path}: {len(examples)} examples; expected {EXAMPLES}")
    return examples


def _example(path: Path, number: int, entry: Any, expected: str) -> Example:
    values = [entry.get(name) if isinstance(entry, dict) else None for name in ("description", "caption")]
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise InputError(f"{path}: example {number} lacks a description or a caption; {expected}")
    description, caption = (" ".join(str(value).split()) for value in values)
    if read_answer(caption)[0] not in ("caption", "none"):
        raise InputError(
            f"{path}: example {number}: {caption[:60]!r} would not be taken for a caption; "
            "give one sentence on one line, or NONE"
        )
    return Example(description, caption)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InputError(f"{path}: over {_MAX_FILE_BYTES} bytes; expected a short text")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
