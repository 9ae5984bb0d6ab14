"""Random numbers that are pure functions of their keys.

Every draw is a chain of splitmix64 finalisers over the keys in uint64 arithmetic, so it depends on no generator state,
no order of calls and no version of numpy: order, crops and caption choices never change.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1

Key = int | npt.NDArray[np.integer]
"""A Python integer (taken modulo 2^64) or an integer array; several keys broadcast."""


def mix(*keys: Key) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """64 random bits for each broadcast tuple of keys, uint64; the order of the keys matters.

    With a single key it is the first output of the splitmix64 generator seeded with that key.
    """
    state = np.zeros((), np.uint64)
    for key in keys:
        bits = np.uint64(key & _MASK) if isinstance(key, int) else np.asarray(key).astype(np.uint64)
        state = _splitmix64(state ^ bits)
    return np.asarray(state)


def uniform(*keys: Key) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Uniform draws in [0, 1) with 53 random bits, float64, one for each broadcast tuple of keys."""
    return np.asarray((mix(*keys) >> np.uint64(11)) * 2.0**-53, np.float64)


def integers(*keys: Key, high: Key) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Draws from 0, ..., high - 1, int64; `high` (>= 1, broadcast) is taken by remainder.

    The remainder favours small numbers by less than high / 2^64, which nothing here could ever see. Raises
    `ValueError` for a `high` below 1.
    """
    limit = np.asarray(high, np.int64)
    if (limit < 1).any():
        raise ValueError(f"high must be at least 1, got {limit.min()}")
    return np.asarray(mix(*keys) % limit.astype(np.uint64)).astype(np.int64)


def permutation(n: int, *keys: Key) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A permutation of 0, ..., n - 1, int64 `[n]`: the stable order of one draw per element."""
    return np.argsort(mix(*keys, np.arange(n)), kind="stable").astype(np.int64)


def _splitmix64(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        z = state + _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _MULTIPLIER_1
        z = (z ^ (z >> np.uint64(27))) * _MULTIPLIER_2
        return z ^ (z >> np.uint64(31))
