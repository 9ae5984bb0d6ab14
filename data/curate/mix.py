"""A mix: which clips of which manifests are trained on, how often, and with which captions.

The mix is a manifest whose `texts` and `synthetic_text` are what `cacophony pack` packs.
"""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Literal, get_args

from ...errors import InputError
from ..progress import progress_bar
from .listing import Seen, databases_in
from .manifest import KINDS, PART_ROWS, Manifest, Row, part_name, write_part
from .parts import finish, finished_before, unfinished

STAGE = "mix"
MAX_WEIGHT = 100.0

Preset = Literal["v1", "v2", "v3"]
PRESETS: dict[Preset, dict[str, float]] = {
    "v1": {"clean": 1.0, "noisy": 0.0, "unlabeled": 0.0},
    "v2": {"clean": 1.0, "noisy": 1.0, "unlabeled": 0.0},
    "v3": {"clean": 1.0, "noisy": 1.0, "unlabeled": 1.0},
}
"""Weights of each kind: captions by people; and cleaned descriptions; and captions by a model.

So we read the paper's Table X, whose three data sets grow in the order in which its section II describes the kinds.
"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a mix takes."""

    preset: Preset = "v3"
    weights: Mapping[str, float] = field(default_factory=dict)
    """By source or kind; of a clip its source's counts where there is one, then its kind's, then the preset's.

    Below 1 it is the share of clips that are taken, above 1 how often: 2.5 takes half of them thrice, the others twice.
    Each time is a clip of its own in the shards, encoded and stored again.
    """
    allowed_flags: tuple[str, ...] = ()
    """Flags with which a cleaned variant may still be a caption; every other flag keeps it out."""
    seed: int = 0
    """Another one takes other clips where a weight is no whole number."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"preset is {self.preset!r:.40}; expected {', '.join(get_args(Preset))}")
        for name, weight in self.weights.items():
            if not 0 <= weight <= MAX_WEIGHT:
                raise InputError(f"weight of {name!r:.80} is {weight}; expected 0 to {MAX_WEIGHT:g}")

    def weight(self, row: Row) -> float:
        """How often the clip is taken on average."""
        kind = row["kind"]
        return self.weights.get(row["source"], self.weights.get(kind, PRESETS[self.preset][kind]))


def mix(manifests: Sequence[Manifest], out: Path, recipe: Recipe, *, progress: bool = True) -> Manifest:
    """Write to `out` the clips that `recipe` takes of `manifests`, in their order.

    A repeated clip has the ids `id`, `id#2`, …. Which clips a weight below 1 takes is decided by a hash of seed, source
    and id: a larger weight takes the same and more, whatever else is in the manifests. Killed and called again it
    starts anew, with the same result, byte for byte; memory does not depend on how many clips there are.

    Raises `InputError` when `out` is something else, a weight names no source, or no clip is taken.
    """
    settings = {
        "preset": recipe.preset,
        "weights": PRESETS[recipe.preset] | dict(sorted(recipe.weights.items())),
        "allowed_flags": sorted(recipe.allowed_flags),
        "seed": recipe.seed,
        "sources": [manifest.provenance for manifest in manifests],
    }
    plan = {"stage": STAGE, "settings": settings}
    finished = finished_before(out, plan)
    if finished is not None:
        return finished
    with unfinished(out, plan) as work:
        try:
            parts = _write(manifests, work, recipe, progress)
        except InputError:
            shutil.rmtree(work)
            raise
        return finish(out, plan, parts)


def _write(manifests: Sequence[Manifest], work: Path, recipe: Recipe, progress: bool) -> int:
    sources, counts = set[str](), Counter[str]()
    waiting: list[Row] = []
    parts = 0

    def write() -> None:
        nonlocal parts
        write_part(work / part_name(parts), waiting, counts)
        parts += 1
        waiting.clear()
        counts.clear()

    with databases_in(work), progress_bar(progress, "clips") as bar, closing(Seen(work / "seen")) as seen:
        task = bar.add_task(STAGE, total=sum(manifest.rows for manifest in manifests))
        for row in (row for manifest in manifests for row in manifest):
            sources.add(row["source"])
            for taken in _take(row, recipe, seen.add, counts):
                waiting.append(taken)
                if len(waiting) == PART_ROWS:
                    write()
            bar.advance(task)
    (work / "seen").unlink()
    unknown = sorted(recipe.weights.keys() - sources - set(KINDS))
    if unknown:
        raise InputError(f"weight of {unknown[0]!r:.80}: no such source; there are {', '.join(sorted(sources))[:300]}")
    if not (parts or waiting):
        reasons = ", ".join(f"{count} × {reason}" for reason, count in counts.most_common(5))
        raise InputError(f"the mix has no clip ({reasons or 'the manifests have none'}); change preset or weights")
    if waiting or counts:
        write()
    return parts


def _take(row: Row, recipe: Recipe, is_new: Callable[[str, str], bool], counts: Counter[str]) -> Iterator[Row]:
    copies = copies_of(recipe.weight(row), recipe.seed, row["source"], row["id"])
    # First of all: what is excluded in one manifest may not come back from a later one.
    if not is_new(row["source"], row["id"]):
        counts["left out: (source, id) that came before"] += 1
    elif row["excluded"]:
        counts[f"left out: excluded ({row['excluded'].partition(':')[0]})"] += 1
    elif not copies:
        counts[f"left out: weight of {row['source']}"] += 1
    else:
        texts = _captions(row, recipe, counts)
        if not (texts or row["synthetic_text"]):
            counts["left out: no caption"] += 1
            return
        counts["taken"] += 1
        for number in range(1, copies + 1):
            copy = row.copy()
            copy["texts"], copy["cleaned"], copy["title"], copy["tags"] = texts, [], "", []
            if number > 1:
                copy["id"] = f"{row['id']}#{number}"
                counts["repeated"] += 1
            yield copy


def copies_of(weight: float, seed: int, source: str, id: str) -> int:
    """How often a clip is taken: the whole part of `weight`, and once more with the probability of the rest."""
    digest = blake2b(f"{seed}/{source}/{id}".encode(), digest_size=8).digest()
    whole = math.floor(weight)
    return whole + (int.from_bytes(digest, "big") < (weight - whole) * 2**64)


def _captions(row: Row, recipe: Recipe, counts: Counter[str]) -> list[str]:
    """Captions as published, or what of the cleaned variants no flag keeps out, each once."""
    if row["kind"] == "clean":
        return row["texts"]
    kept: dict[str, None] = {}
    for variant in row["cleaned"]:
        fatal = [flag for flag in variant["flags"] if flag not in recipe.allowed_flags]
        if fatal:
            counts.update(f"variant left out: {flag}" for flag in fatal)
        elif variant["text"]:
            kept[variant["text"]] = None
    return list(kept)
