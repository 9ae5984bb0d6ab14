"""What a mix holds, in numbers, read part by part."""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.curate.manifest import KINDS, Manifest, Row
from ...data.tokens import CaptionTokenizer

_BATCH = 1_024
_WHOLE = 1 << 20  # tokens: longer than any caption that can be packed
_MAX_LICENCES = 1_000
OTHER_LICENCES = "others"


@dataclass
class Share:
    """Clips of one source and kind."""

    clips: int = 0
    """Repeated ones as often as they are there."""
    seconds: float = 0.0
    captions: int = 0
    synthetic: int = 0

    def add(self, row: Row) -> None:
        """Count a clip."""
        self.clips += 1
        self.seconds += row["seconds"]
        self.captions += len(row["texts"])
        self.synthetic += len(row["synthetic_text"])

    def __add__(self, other: "Share") -> "Share":
        return Share(
            self.clips + other.clips,
            self.seconds + other.seconds,
            self.captions + other.captions,
            self.synthetic + other.synthetic,
        )


@dataclass
class MixStats:
    """Numbers of a mix."""

    shares: dict[tuple[str, str], Share] = field(default_factory=dict)
    """By (source, kind), in the order in which they come."""
    licences: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Clips of each (source, licence); an empty licence is one that the source does not state."""
    seconds: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Duration of each clip, float32 `[clips]`."""
    tokens: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Tokens of each caption of both kinds, `<s>` and `</s>` included, int32 `[captions]`."""

    @property
    def total(self) -> Share:
        """All clips."""
        return sum(self.shares.values(), Share())

    def by_kind(self) -> dict[str, Share]:
        """The kinds that there are."""
        found = {kind: [share for (_, its), share in self.shares.items() if its == kind] for kind in KINDS}
        return {kind: sum(shares, Share()) for kind, shares in found.items() if shares}


def captions_of(manifest: Manifest) -> Iterator[str]:
    """Every caption of a mix, clip by clip."""
    for row in manifest:
        yield from row["texts"]
        yield from row["synthetic_text"]


def mix_stats(manifest: Manifest, tokenizer: CaptionTokenizer) -> MixStats:
    """Read every row; raises `InputError` where a part is damaged."""
    stats, seconds, tokens, waiting = MixStats(), array("f"), array("i"), list[str]()

    def count_tokens() -> None:
        tokens.extend(map(len, tokenizer.encode(waiting, _WHOLE)))
        waiting.clear()

    for row in manifest:
        stats.shares.setdefault((row["source"], row["kind"]), Share()).add(row)
        licence = (row["source"], row["licence"])
        room = licence in stats.licences or len(stats.licences) < _MAX_LICENCES
        stats.licences[licence if room else (row["source"], OTHER_LICENCES)] += 1
        seconds.append(row["seconds"])
        waiting += row["texts"] + row["synthetic_text"]
        if len(waiting) >= _BATCH:
            count_tokens()
    count_tokens()
    stats.seconds, stats.tokens = np.array(seconds, np.float32), np.array(tokens, np.int32)
    return stats


def stages_of(manifest: Manifest) -> list[dict[str, Any]]:
    """The stages behind a manifest, the first one first: stage, rows, digest, counts and settings of each, once."""
    found: dict[str, dict[str, Any]] = {}

    def visit(made: dict[str, Any]) -> None:
        settings = made.get("settings")
        settings = settings if isinstance(settings, dict) else {}
        sources = settings.get("sources")
        for source in [settings.get("source"), *(sources if isinstance(sources, list) else [])]:
            if isinstance(source, dict) and "digest" in source:
                visit(source)
        found.setdefault(str(made.get("digest")), made | {"settings": _without_sources(settings)})

    visit(manifest.provenance)
    return list(found.values())


def _without_sources(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the digests of other manifests in place of all that is known of them."""

    def short(value: Any) -> Any:
        if isinstance(value, dict) and "digest" in value:
            return value["digest"]
        return [short(item) for item in value] if isinstance(value, list) else value

    return {name: short(value) for name, value in settings.items()}
