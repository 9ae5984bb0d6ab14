import numpy as np
import pytest
from cacophony.engine.evaluate.bootstrap import bootstrap_interval


def test_the_interval_is_that_of_the_normal_approximation():
    """Budget 10 % of the width: for 1000 independent queries the mean is nearly normal."""
    values = np.random.default_rng(1).random((1000, 2)) < (0.3, 0.8)
    low, high = bootstrap_interval(values.astype(float), np.arange(1000))
    mean, deviation = values.mean(axis=0), values.std(axis=0) / np.sqrt(1000)
    np.testing.assert_allclose(high - low, 2 * 1.96 * deviation, rtol=0.1)
    np.testing.assert_allclose((high + low) / 2, mean, atol=0.3 * deviation.max())


def test_it_is_the_percentiles_of_means_over_drawn_clips():
    rng = np.random.default_rng(2)
    owner = np.array([0, 0, 0, 1, 2, 2])
    values = rng.random((6, 1))
    same_rng, means = np.random.default_rng(7), []
    for _ in range(2):
        for drawn in same_rng.integers(3, size=(50, 3)):
            means.append(np.concatenate([values[owner == clip, 0] for clip in drawn]).mean())  # noqa: PERF401
    expected = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose(bootstrap_interval(values, owner, seed=7, draws=100)[:, 0], expected)


def test_queries_of_one_clip_give_no_more_certainty_than_one():
    values = np.random.default_rng(3).random((100, 1))
    once = bootstrap_interval(values, np.arange(100))
    np.testing.assert_allclose(bootstrap_interval(np.repeat(values, 5, axis=0), np.repeat(np.arange(100), 5)), once)


def test_the_seed_alone_decides():
    values = np.random.default_rng(4).random((60, 1))
    first, again, other = (bootstrap_interval(values, np.arange(60), seed=seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_never_varies_has_no_width(value: float):
    interval = bootstrap_interval(np.full((30, 1), value), np.arange(30))
    assert interval.ravel().tolist() == [value, value]
