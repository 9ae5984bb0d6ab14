"""Clotho: a csv per split with five captions a row, and a folder of clips named in it."""

import unicodedata
from pathlib import Path

from .corpus import CaptionCorpus, caption_corpus, files_by_stem
from .tables import check_caption, once, read_table, require

NAME = "clotho"
MARKER = "clotho_captions_evaluation.csv"
LAYOUT = "clotho_captions_evaluation.csv (file_name, caption_1 … caption_5) and evaluation/<file_name>"
_COLUMNS = ("file_name", *(f"caption_{number}" for number in range(1, 6)))


def read_clotho(directory: Path) -> CaptionCorpus:
    """Read the evaluation split; raises InputError for another layout and for an empty caption."""
    require(directory, NAME, LAYOUT, MARKER, "evaluation")
    captions: dict[str, tuple[str, ...]] = {}
    seen: dict[str, str] = {}
    for row in read_table(directory / MARKER, _COLUMNS):
        name, *texts = row.values
        texts = [check_caption(text, name, row) for text in texts]
        once(seen, name, " | ".join(texts), row, "the captions")
        captions[name] = tuple(texts)
    found = files_by_stem(directory / "evaluation")

    def find(name: str) -> Path | None:
        stem = Path(name).stem
        # Unpacked on some file systems, accents are characters of their own.
        return found(stem) or found(unicodedata.normalize("NFC", stem)) or found(unicodedata.normalize("NFD", stem))

    return caption_corpus(NAME, directory, captions, find)
