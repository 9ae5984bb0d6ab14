"""The scores against their definitions, computed slowly."""

from statistics import NormalDist

import numpy as np
import pytest
from cacophony.engine.evaluate.hear_scores import SCENE_SCORES
from hypothesis import given
from hypothesis import strategies as st


def draw(seed: int, examples: int = 25, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties, and targets of which every class has both kinds."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((examples, classes)) < 0.4).astype(np.float64)
    targets[0], targets[1] = 0.0, 1.0
    return np.round(generator.random((examples, classes)), 1), targets


@given(st.integers(0, 1_000))
def test_the_area_is_the_share_of_pairs_in_order(seed: int):
    probabilities, targets = draw(seed)
    areas = []
    for p, t in zip(probabilities.T, targets.T, strict=True):
        pairs = [(a > b) + (a == b) / 2 for a in p[t > 0] for b in p[t == 0]]
        areas.append(np.mean(pairs))
    assert SCENE_SCORES["aucroc"](probabilities, targets) == pytest.approx(np.mean(areas))
    expected = np.mean([2**0.5 * NormalDist().inv_cdf(a) for a in areas])
    assert SCENE_SCORES["d_prime"](probabilities, targets) == pytest.approx(expected)


@given(st.integers(0, 1_000))
def test_average_precision_goes_down_the_thresholds(seed: int):
    probabilities, targets = draw(seed)
    means = []
    for p, t in zip(probabilities.T, targets.T, strict=True):
        total, before = 0.0, 0.0
        for threshold in sorted(set(p), reverse=True):
            taken = p >= threshold
            recall = (taken & (t > 0)).sum() / t.sum()
            total += (recall - before) * (taken & (t > 0)).sum() / taken.sum()
            before = recall
        means.append(total)
    assert SCENE_SCORES["mAP"](probabilities, targets) == pytest.approx(np.mean(means))


def test_the_published_implementations_agree():
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities, targets = draw(5, examples=60)
    assert SCENE_SCORES["mAP"](probabilities, targets) == pytest.approx(
        metrics.average_precision_score(targets, probabilities, average="macro")
    )
    assert SCENE_SCORES["aucroc"](probabilities, targets) == pytest.approx(
        metrics.roc_auc_score(targets, probabilities, average="macro")
    )


def test_accuracies():
    probabilities = np.eye(13)[[0, 12, 5, 6]]
    targets = np.eye(13)[[0, 0, 5, 7]]
    assert SCENE_SCORES["top1_acc"](probabilities, targets) == 0.5
    assert SCENE_SCORES["pitch_acc"](probabilities, targets) == 0.5
    assert SCENE_SCORES["chroma_acc"](probabilities, targets) == 0.75  # an octave too high is right


def test_classes_that_say_nothing_are_left_out():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.3]])
    targets = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert SCENE_SCORES["mAP"](probabilities, targets) == 1.0
    assert SCENE_SCORES["aucroc"](probabilities, targets) == 1.0
    assert np.isinf(SCENE_SCORES["d_prime"](probabilities, targets))
    assert np.isnan(SCENE_SCORES["mAP"](probabilities, np.zeros((2, 2))))
