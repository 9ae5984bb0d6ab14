"""Zero-shot classification: top-1, top-5, each class's share and the confusion matrix, from similarities alone."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .bootstrap import Interval, named_intervals

_TOPS = (1, 5)
_NAMES = [f"top_{k}" for k in _TOPS]


class ClassScores(TypedDict):
    """How the clips of one class fared: `top_1` and `top_5` in [0, 1], None where the class has no clip here."""

    name: str
    clips: int
    top_1: float | None
    top_5: float | None
    most_taken_for: str | None
    """The other class that most of its clips were given, if any was."""


class ZeroShotMetrics(TypedDict):
    """Shares in [0, 1] of clips whose class is the likeliest, or among the five likeliest."""

    top_1: float
    top_5: float
    intervals: dict[str, Interval]
    """95 % bootstrap intervals over clips."""
    chance: dict[str, float]
    """1 and 5 over the number of classes."""
    clips: int
    classes: list[ClassScores]
    confusion: list[list[int]]
    """Row: the true class; column: the class given; number of clips."""


def zero_shot_metrics(
    similarity: NDArray[np.floating], labels: NDArray[np.integer], classes: Sequence[str]
) -> ZeroShotMetrics:
    """Score the classification of N clips into C classes.

    Ties count against the model: among classes of equal similarity the true one comes last, so that equal embeddings
    score at or below chance.

    Args:
        similarity: float `[N, C]`, the larger the likelier.
        labels: int `[N]`, the true class of each clip.
        classes: names of the C classes.

    Raises:
        InputError: shapes do not fit, a similarity is not finite, or a label is none of the classes.
    """
    clips, count = len(labels), len(classes)
    if similarity.shape != (clips, count) or not clips or not count:
        raise InputError(f"similarities have shape {similarity.shape} for {clips} clips and {count} classes")
    if not np.isfinite(similarity).all():
        raise InputError("a similarity is not finite; the model that made it cannot be evaluated")
    if labels.min() < 0 or labels.max() >= count:
        raise InputError(f"labels run from {labels.min()} to {labels.max()}; expected 0 to {count - 1}")
    rows = np.arange(clips)
    # Rounded so that equal embeddings tie, in whatever order the matrix product adds up their columns.
    rounded = np.round(similarity.astype(np.float64), 12)
    true = rounded[rows, labels]
    rank = np.count_nonzero(rounded >= true[:, None], axis=1)
    others = rounded.copy()
    others[rows, labels] = -np.inf
    given = np.where(rank == 1, labels, others.argmax(axis=1))
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, given), 1)
    hits = np.stack([rank <= k for k in _TOPS], axis=1).astype(np.float64)
    top_1, top_5 = (float(mean) for mean in hits.mean(axis=0))
    return ZeroShotMetrics(
        top_1=top_1,
        top_5=top_5,
        intervals=named_intervals(_NAMES, hits, rows),
        chance={name: min(1.0, k / count) for name, k in zip(_NAMES, _TOPS, strict=True)},
        clips=clips,
        classes=[_class_scores(index, hits[labels == index], confusion[index], classes) for index in range(count)],
        confusion=confusion.tolist(),
    )


def format_zero_shot(metrics: ZeroShotMetrics) -> str:
    """Lay the metrics out as plain text, in percent: the whole, then a row per class that has clips."""
    lines = [f"{metrics['clips']} clips, {len(metrics['classes'])} classes; percent"]
    for name, value in (("top_1", metrics["top_1"]), ("top_5", metrics["top_5"])):
        low, high = metrics["intervals"][name]
        lines.append(
            f"{name}: {100 * value:.1f} (95 % interval {100 * low:.1f} to {100 * high:.1f}, "
            f"chance {100 * metrics['chance'][name]:.1f})"
        )
    present = [one for one in metrics["classes"] if one["clips"]]
    width = max(len(one["name"]) for one in present)
    lines.append(f"{'class':<{width}} {'clips':>6} {'top_1':>6} {'top_5':>6}  most taken for")
    for one in present:
        shares = (f"{100 * (share or 0):6.1f}" for share in (one["top_1"], one["top_5"]))
        lines.append(
            f"{one['name']:<{width}} {one['clips']:>6} {' '.join(shares)}  {one['most_taken_for'] or ''}".rstrip()
        )
    return "\n".join(lines)


def _class_scores(
    index: int, hits: NDArray[np.float64], given: NDArray[np.integer], classes: Sequence[str]
) -> ClassScores:
    wrong = given.copy()
    wrong[index] = 0
    return ClassScores(
        name=classes[index],
        clips=len(hits),
        top_1=float(hits[:, 0].mean()) if len(hits) else None,
        top_5=float(hits[:, 1].mean()) if len(hits) else None,
        most_taken_for=classes[int(wrong.argmax())] if wrong.any() else None,
    )
