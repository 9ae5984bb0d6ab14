"""Large arrays kept as some of their entries and three sums: small enough to commit, and an error anywhere shows.

A tree is arrays by name. Trees of one structure (a gradient and an update, a gradient under another loss) are sampled
at the same places: evenly spaced ones, and where the first of them is largest.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Tree = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Places:
    """Where the trees of one structure are sampled: flat indices into each of its arrays, in sorted order of names."""

    names: Sequence[str]
    indices: Sequence[np.ndarray]

    @classmethod
    def all(cls, tree: Tree) -> "Places":
        """Take every entry."""
        return cls(sorted(tree), [np.arange(tree[name].size, dtype=np.int32) for name in sorted(tree)])

    @classmethod
    def choose(cls, tree: Tree, spaced: int, largest: int) -> "Places":
        """Take ``spaced`` evenly spaced entries of each array, ends included, and the ``largest`` largest."""
        return cls(sorted(tree), [_indices(tree[name], spaced, largest) for name in sorted(tree)])

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Places":
        """Undo :meth:`arrays`."""
        return cls(arrays["names"].tolist(), np.split(arrays["indices"], arrays["counts"].cumsum()[:-1]))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays to store."""
        counts = np.array([len(index) for index in self.indices], np.int32)
        return {"names": np.array(self.names), "counts": counts, "indices": np.concatenate(self.indices)}

    def take(self, tree: Tree) -> dict[str, np.ndarray]:
        """Return each array's entries at its places."""
        assert sorted(tree) == list(self.names), "the tree has other names"
        return {name: tree[name].ravel()[index] for name, index in zip(self.names, self.indices, strict=True)}

    def split(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return stored ``values`` (:meth:`take`'s, end to end) by name."""
        ends = np.cumsum([len(index) for index in self.indices])
        return dict(zip(self.names, np.split(values, ends[:-1]), strict=True))


def summaries(tree: Tree) -> np.ndarray:
    """Return largest magnitude, L2 norm and sum of each array, by sorted name: float64 ``[arrays, 3]``."""
    exact = [tree[name].astype(np.float64) for name in sorted(tree)]
    return np.array([[np.abs(a).max(), np.sqrt((a * a).sum()), a.sum()] for a in exact])


@dataclass(frozen=True)
class Deviation:
    """How far an array is from the golden one (NaN: infinitely), and the golden one's largest magnitude."""

    name: str
    error: float
    largest: float


def deviations(tree: Tree, places: Places, values: np.ndarray, golden: np.ndarray) -> Iterator[Deviation]:
    """Compare ``tree`` with a golden one stored as ``values`` at ``places`` and its :func:`summaries`.

    The error is the largest of: a sampled entry's; the largest magnitude's; the sum's over sqrt(entries); the L2 norm's
    relative one, times the largest magnitude. Where every entry is off by about e these are of the order of e or less,
    so that the budget of an entry holds them too, while a single entry off by much more shows in the sum.
    """
    entries, found = places.take(tree), summaries(tree)
    for row, (name, expected) in enumerate(places.split(values).items()):
        largest, norm, _ = golden[row]
        scale = [1.0, largest / norm if norm else 1.0, tree[name].size ** -0.5]
        of_entries = np.abs(entries[name].astype(np.float64) - expected)
        error = np.append(of_entries, np.abs(found[row] - golden[row]) * scale).max()
        yield Deviation(name, math.inf if np.isnan(error) else float(error), float(largest))


def _indices(array: np.ndarray, spaced: int, largest: int) -> np.ndarray:
    size = array.size
    if size <= spaced + largest:
        return np.arange(size, dtype=np.int32)
    even = np.linspace(0, size - 1, spaced).round().astype(np.int32)
    by_magnitude = np.argsort(-np.abs(array).ravel(), kind="stable")[:largest].astype(np.int32)
    return np.unique(np.concatenate((even, by_magnitude)))
