"""Bootstrap intervals of means over queries, where the queries of one clip stand or fall together."""

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

DRAWS = 2000
_CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 50


def bootstrap_interval(
    values: NDArray[np.floating], clip_of_value: NDArray[np.integer], *, seed: int = 0, draws: int = DRAWS
) -> NDArray[np.float64]:
    """Return the 95 % percentile interval of the mean of each column of ``values``, clips drawn with replacement.

    The five captions of a clip are no five independent queries, so clips are what is drawn; the gallery they are
    ranked in stays whole. The same seed gives the same interval.

    Args:
        values: float ``[Q, F]``, F figures of each query.
        clip_of_value: int ``[Q]``, the clip from 0 to N - 1 of each query; every clip has one.
        seed: of the draws.
        draws: how many samples of N clips.

    Returns:
        float64 ``[2, F]``: lower and upper ends.
    """
    clips = int(clip_of_value.max()) + 1
    counts = np.bincount(clip_of_value, minlength=clips).astype(np.float64)
    sums = np.stack([np.bincount(clip_of_value, weights=column, minlength=clips) for column in values.T], axis=1)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, _DRAWS_AT_ONCE):
        drawn = rng.integers(clips, size=(min(_DRAWS_AT_ONCE, draws - start), clips))
        times = np.stack([np.bincount(row, minlength=clips) for row in drawn]).astype(np.float64)
        means.append((times @ sums) / (times @ counts)[:, None])
    tail = 50 * (1 - _CONFIDENCE)
    return np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)


def named_intervals(
    names: list[str], values: NDArray[np.floating], clip_of_value: NDArray[np.integer]
) -> dict[str, Interval]:
    """Return name → (lower, upper) of the columns of ``values`` (see :func:`bootstrap_interval`)."""
    low, high = bootstrap_interval(values, clip_of_value)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}
