"""The scores of HEAR's scene tasks, from probabilities ``[N, C]`` and targets ``[N, C]`` of zeros and ones.

Scores over classes are means over those that have both a positive and a negative example (average precision: a
positive one).
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

_PITCHES = 12


def top1_accuracy(probabilities: Floats, targets: Floats) -> float:
    """Return the share of examples whose most probable class (of equals the first) is theirs."""
    return float(np.mean(probabilities.argmax(axis=1) == targets.argmax(axis=1)))


def chroma_accuracy(probabilities: Floats, targets: Floats) -> float:
    """Return the share of examples whose pitch is right up to octaves; classes are semitones."""
    return float(np.mean(probabilities.argmax(axis=1) % _PITCHES == targets.argmax(axis=1) % _PITCHES))


def mean_average_precision(probabilities: Floats, targets: Floats) -> float:
    """Return the mean over classes of Σ (recall step) · precision, equal probabilities taken together."""
    return _mean([_average_precision(p, t) for p, t in zip(probabilities.T, targets.T, strict=True) if t.any()])


def area_under_roc(probabilities: Floats, targets: Floats) -> float:
    """Return the mean over classes of the probability that a positive example is above a negative one; ties half."""
    return _mean(_areas(probabilities, targets))


def d_prime(probabilities: Floats, targets: Floats) -> float:
    """Return the mean over classes of √2 · Φ⁻¹(area under ROC); infinite where a class is separated."""
    return _mean([np.sqrt(2.0) * _quantile(area) for area in _areas(probabilities, targets)])


SCENE_SCORES: dict[str, Callable[[Floats, Floats], float]] = {
    "top1_acc": top1_accuracy,
    "pitch_acc": top1_accuracy,
    "chroma_acc": chroma_accuracy,
    "mAP": mean_average_precision,
    "aucroc": area_under_roc,
    "d_prime": d_prime,
}


def _average_precision(probabilities: Floats, targets: Floats) -> float:
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(targets[order])
    ends = np.append(np.flatnonzero(np.diff(probabilities[order])), len(order) - 1)  # of runs of equal probability
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def _areas(probabilities: Floats, targets: Floats) -> list[float]:
    areas = []
    for p, t in zip(probabilities.T, targets.T, strict=True):
        positive, negative = np.sort(p[t > 0]), np.sort(p[t == 0])
        if len(positive) and len(negative):
            below, up_to = (np.searchsorted(negative, positive, side=side) for side in ("left", "right"))
            areas.append(float(np.mean(below + up_to) / 2 / len(negative)))
    return areas


def _quantile(area: float) -> float:
    return float("-inf") if area <= 0 else float("inf") if area >= 1 else NormalDist().inv_cdf(area)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
