import numpy as np
import pytest
from cacophony.engine.evaluate.zero_shot_metrics import format_zero_shot, zero_shot_metrics
from cacophony.errors import InputError

CLASSES = ["bell", "cat", "dog", "horn", "rain", "wind", "saw"]


def test_a_perfect_and_a_worst_model():
    labels = np.arange(7).repeat(3)
    perfect = zero_shot_metrics(np.eye(7)[labels], labels, CLASSES)
    assert (perfect["top_1"], perfect["top_5"]) == (1.0, 1.0)
    assert perfect["confusion"] == np.diag([3] * 7).tolist()
    worst = zero_shot_metrics(-np.eye(7)[labels], labels, CLASSES)
    assert (worst["top_1"], worst["top_5"]) == (0.0, 0.0)
    assert perfect["chance"] == {"top_1": pytest.approx(1 / 7), "top_5": pytest.approx(5 / 7)}


def test_equal_similarities_count_against_the_model():
    labels = np.arange(7)
    metrics = zero_shot_metrics(np.ones((7, 7)), labels, CLASSES)
    assert (metrics["top_1"], metrics["top_5"]) == (0.0, 0.0)
    assert np.trace(metrics["confusion"]) == 0
    assert np.sum(metrics["confusion"]) == 7


def test_the_trace_of_the_confusion_is_top_1_and_its_rows_are_the_clips():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=300)  # two classes have no clip
    metrics = zero_shot_metrics(rng.normal(size=(300, 7)), labels, CLASSES)
    confusion = np.array(metrics["confusion"])
    assert np.trace(confusion) / 300 == pytest.approx(metrics["top_1"])
    assert confusion.sum(axis=1).tolist() == [one["clips"] for one in metrics["classes"]]
    assert [one["top_1"] for one in metrics["classes"][5:]] == [None, None]
    for index, one in enumerate(metrics["classes"][:5]):
        wrong = np.delete(confusion[index], index)
        assert one["most_taken_for"] is not None
        assert confusion[index, CLASSES.index(one["most_taken_for"])] == wrong.max()
    low, high = metrics["intervals"]["top_1"]
    assert low < metrics["top_1"] < high


def test_fewer_than_five_classes_are_all_among_the_first_five():
    metrics = zero_shot_metrics(np.random.default_rng(0).normal(size=(9, 3)), np.arange(9) % 3, CLASSES[:3])
    assert metrics["top_5"] == metrics["chance"]["top_5"] == 1.0


def test_the_table_has_a_row_per_class_that_has_clips():
    labels = np.array([0, 0, 2])
    lines = format_zero_shot(zero_shot_metrics(np.eye(7)[[0, 2, 2]], labels, CLASSES)).splitlines()
    assert "66.7" in lines[1]
    assert [line.split()[0] for line in lines[4:]] == ["bell", "dog"]
    assert lines[4].split() == ["bell", "2", "50.0", "50.0", "dog"]


def test_wrong_input_is_refused_with_a_reason():
    scores, labels = np.eye(3), np.arange(3)
    for arguments, message in (
        ((scores[:2], labels, CLASSES[:3]), "shape"),
        ((scores, labels, CLASSES[:2]), "shape"),
        ((scores, labels + 1, CLASSES[:3]), "labels run from 1 to 3"),
        ((scores * np.nan, labels, CLASSES[:3]), "not finite"),
        ((scores[:0], labels[:0], CLASSES[:3]), "0 clips"),
    ):
        with pytest.raises(InputError, match=message):
            zero_shot_metrics(*arguments)
