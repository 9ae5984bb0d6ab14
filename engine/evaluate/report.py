"""What every evaluation says of its corpus: how many clips there were, and which were missing."""

from typing import Any

from ...data.audio import printable
from .datasets.corpus import Corpus

_NAMED = 3


def corpus_record(corpus: Corpus) -> dict[str, Any]:
    """Return dataset, directory, number of clips found, and every missing clip with the reason, as JSON takes them."""
    return {
        "dataset": corpus.dataset,
        "directory": str(corpus.directory),
        "found": len(corpus.clips),
        "missing": [{"name": one.name, "reason": one.reason} for one in corpus.missing],
    }


def corpus_line(corpus: Corpus) -> str:
    """Say in a line how many clips were found and missing, the first few by name."""
    line = f"{corpus.dataset}: {len(corpus.clips)} clips found, {len(corpus.missing)} missing"
    named = [f"{printable(one.name)} ({one.reason})" for one in corpus.missing[:_NAMED]]
    return line + (f": {', '.join(named)}{', …' if corpus.missing[_NAMED:] else ''}" if named else "")
