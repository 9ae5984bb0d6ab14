"""An error anywhere in a sampled array shows, whether or not its entry was kept."""

from collections.abc import Callable

import numpy as np
import pytest

from .sampling import Places, deviations, summaries

Change = Callable[[np.ndarray], None]


def transpose(a: np.ndarray) -> None:
    a[:64, :64] = a[:64, :64].T.copy()


def one_entry(a: np.ndarray) -> None:
    a[17, 3] += 0.01


def not_a_number(a: np.ndarray) -> None:
    a[17, 3] = np.nan


def scale(a: np.ndarray) -> None:
    a *= 1.0001


def last_row(a: np.ndarray) -> None:
    a[-1] = a[-2]


@pytest.mark.parametrize("change", [transpose, one_entry, not_a_number, scale, last_row])
def test_errors_show(change: Change) -> None:
    tree = {"b": np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32), "a": np.ones(3, np.float32)}
    places = Places.choose(tree, 32, 10)
    golden, values = summaries(tree), np.concatenate(list(places.take(tree).values()))
    assert 17 * 64 + 3 not in places.indices[1]
    assert [d.error for d in deviations(tree, Places.of(places.arrays()), values, golden)] == [0.0, 0.0]
    changed = {name: array.copy() for name, array in tree.items()}
    change(changed["b"])
    a, b = deviations(changed, places, values, golden)
    assert (a.name, a.error, b.name) == ("a", 0.0, "b")
    assert b.error > 1e-5 * b.largest
