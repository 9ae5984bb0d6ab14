"""What a packed directory holds, in numbers: hours, lengths of clips, captions and their tokens; nothing is decoded."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import printable
from .shards import Shards, source_of
from .tokens import CaptionTokenizer

_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_BATCH = 1_024
_WHOLE = 1 << 20  # tokens: longer than any caption that can be packed


@dataclass(frozen=True)
class ShardsStats:
    """Numbers of a packed directory."""

    seconds: NDArray[np.float64]
    """Duration of each clip, float64 `[clips]`."""
    tokens: NDArray[np.int32]
    """Tokens of each caption, `<s>` and `</s>` included, int32 `[captions]`; those that people wrote come first."""
    captions: int
    """Captions that people wrote."""
    captions_per_clip: dict[int, int]
    """Clips that have so many captions of both kinds."""
    sources: dict[str, float]
    """Seconds of each source."""

    def content(self) -> dict[str, Any]:
        """Counts, percentiles and the histogram of tokens, for a JSON file."""
        tokens, counts = np.unique(self.tokens, return_counts=True)
        return {
            "clips": len(self.seconds),
            "hours": float(self.seconds.sum()) / 3600,
            "hours_by_source": {name: seconds / 3600 for name, seconds in sorted(self.sources.items())},
            "captions": self.captions,
            "synthetic_captions": len(self.tokens) - self.captions,
            "captions_per_clip": {str(count): clips for count, clips in sorted(self.captions_per_clip.items())},
            "seconds_percentiles": _percentiles(self.seconds),
            "tokens_mean": float(self.tokens.mean()) if len(self.tokens) else 0.0,
            "tokens_percentiles": _percentiles(self.tokens),
            "tokens_histogram": dict(zip(map(str, tokens.tolist()), counts.tolist(), strict=True)),
        }

    def lines(self) -> list[str]:
        """The same in words, for the terminal."""
        content = self.content()
        lines = [
            f"{content['clips']} clips, {content['hours']:.2f} h, {content['captions']} captions that people wrote, "
            f"{content['synthetic_captions']} synthetic",
            _row("percentile", [f"{at} %" for at in _PERCENTILES]),
            _row("seconds", [f"{value:.2f}" for value in content["seconds_percentiles"].values()]),
        ]
        if len(self.tokens):
            lines.append(_row("tokens", [f"{value:.0f}" for value in content["tokens_percentiles"].values()]))
            lines.append(f"a caption has {content['tokens_mean']:.1f} tokens on average, <s> and </s> included")
        lines += [f"{hours:10.2f} h  {printable(name)}" for name, hours in content["hours_by_source"].items()]
        return lines


def shards_stats(shards: Shards, tokenizer: CaptionTokenizer | None) -> ShardsStats:
    """Read every record; `tokenizer` may be None where no clip has a caption.

    Raises `InputError` naming shard and key when a record is damaged.
    """
    seconds = np.zeros(len(shards))
    tokens: dict[bool, list[NDArray[np.int32]]] = {False: [], True: []}
    waiting: dict[bool, list[str]] = {False: [], True: []}
    per_clip: Counter[int] = Counter()
    sources: dict[str, float] = {}

    def count_tokens(synthetic: bool) -> None:
        if waiting[synthetic] and tokenizer is not None:
            encoded = tokenizer.encode(waiting[synthetic], _WHOLE)
            tokens[synthetic].append(np.fromiter(map(len, encoded), np.int32, len(encoded)))
        waiting[synthetic].clear()

    for i in range(len(shards)):
        clip = shards.clip(i)
        seconds[i] = clip.seconds
        per_clip[len(clip.captions) + len(clip.synthetic_captions)] += 1
        source = source_of(clip.source)
        sources[source] = sources.get(source, 0.0) + clip.seconds
        for synthetic, texts in ((False, clip.captions), (True, clip.synthetic_captions)):
            waiting[synthetic] += texts
            if len(waiting[synthetic]) >= _BATCH:
                count_tokens(synthetic)
    count_tokens(False)
    count_tokens(True)
    captions = sum(map(len, tokens[False]))
    every = np.concatenate([np.zeros(0, np.int32), *tokens[False], *tokens[True]])
    return ShardsStats(seconds, every, captions, dict(per_clip), sources)


def _percentiles(values: NDArray[Any]) -> dict[str, float]:
    if not len(values):
        return {}
    return {str(at): float(value) for at, value in zip(_PERCENTILES, np.percentile(values, _PERCENTILES), strict=True)}


def _row(name: str, cells: list[str]) -> str:
    return f"{name:10}" + "".join(f"{cell:>10}" for cell in cells)
