"""A random sample of the noisy descriptions in a manifest, in memory for the sample alone."""

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .manifest import Row
from .noisy_text import cleaner_inputs, digest_of, is_cut


@dataclass(frozen=True, slots=True)
class Sampled:
    """One description of a clip."""

    source: str
    id: str
    text: str


def sample_noisy(rows: Iterable[Row], size: int, seed: int) -> tuple[list[Sampled], Counter[str]]:
    """The `size` descriptions whose digest of (seed, source, id, number) is smallest, in that order, and counts.

    A clip is in the sample or not whatever other clips there are near it, and a larger sample holds the smaller.
    """
    counts: Counter[str] = Counter()
    heap: list[tuple[int, Sampled]] = []  # the largest digest first, as a negative number
    for row in rows:
        if row["kind"] != "noisy" or row["excluded"]:
            continue
        texts = cleaner_inputs(row)
        counts["noisy clips"] += 1
        counts["without any text"] += not texts
        counts["cut"] += any(map(is_cut, row["texts"]))
        for number, text in enumerate(texts):
            key = -int(digest_of(seed, row["source"], row["id"], number), 16)
            if len(heap) < size:
                heapq.heappush(heap, (key, Sampled(row["source"], row["id"], text)))
            elif heap and key > heap[0][0]:
                heapq.heapreplace(heap, (key, Sampled(row["source"], row["id"], text)))
    return [sampled for _, sampled in sorted(heap, key=lambda entry: -entry[0])], counts
