"""Captions to words for the captioning metrics: with the PTB tokenizer where Java is, otherwise by rules like its."""

import re
import shutil
from collections.abc import Sequence
from typing import Literal

from ...errors import InputError

Tokenization = Literal["ptb", "rules"]

_WORD = re.compile(r"\w+(?:[-'.,/&]\w+)*")
# The treebank's convention: a clitic is a word of its own.
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b")


def has_java() -> bool:
    """Whether a `java` is on the path."""
    return shutil.which("java") is not None


def tokenize(captions: Sequence[str], how: Tokenization) -> list[str]:
    """Return each caption in lower case, without punctuation, its words separated by single spaces.

    ``ptb`` runs the tokenizer of pycocoevalcap, a Java program; ``rules`` keeps words with inner hyphens and
    apostrophes whole, splits clitics off as the treebank does, and drops the rest. Raises InputError where Java fails.
    """
    return _ptb(captions) if how == "ptb" else [_by_rules(caption) for caption in captions]


def _by_rules(caption: str) -> str:
    words = " ".join(_WORD.findall(caption.lower().replace("’", "'")))
    return " ".join(_CLITIC.sub(r" \1", words).split())


def _ptb(captions: Sequence[str]) -> list[str]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # pyright: ignore[reportMissingImports]

    # One line a caption: whatever else may end a line for Java becomes a space.
    rows = {row: [{"caption": " ".join(caption.split())}] for row, caption in enumerate(captions)}
    try:
        found = PTBTokenizer().tokenize(rows)
    except OSError as error:
        raise InputError(f"pycocoevalcap's PTB tokenizer cannot run ({error}); use --tokenizer rules") from None
    if len(found) != len(rows):
        raise InputError(f"pycocoevalcap's PTB tokenizer gave {len(found)} of {len(rows)} lines; use --tokenizer rules")
    return [found[row][0] for row in rows]
