"""Frames to events and back, smoothing by its definition, and scores by sed_eval."""

import importlib

import numpy as np
import pytest
from cacophony.engine.evaluate.hear_task import Event
from cacophony.engine.evaluate.sound_events import Smoothing, events_of, frame_targets, score_events
from cacophony.errors import InputError

LABELS = ("dog", "bell")
TIMES = 87.5 + 160.0 * np.arange(12)
NONE = Smoothing(0.0, 0.0)


def test_targets_become_the_events_they_came_from():
    events = [Event("dog", 87.5, 407.5), Event("bell", 247.5, 247.5), Event("dog", 1_367.5, 1_847.5)]
    targets = frame_targets(events, TIMES, LABELS)
    assert targets.shape == (12, 2)
    assert events_of(targets, TIMES, LABELS, NONE) == sorted(events, key=lambda event: event.start)


def test_short_events_are_left_out():
    targets = frame_targets([Event("dog", 87.5, 407.5), Event("bell", 247.5, 247.5)], TIMES, LABELS)
    assert events_of(targets, TIMES, LABELS, Smoothing(0.0, 60.0)) == [Event("dog", 87.5, 407.5)]


@pytest.mark.parametrize("width", [2, 3, 4, 5])
def test_the_median_filter_is_scipys(width: int):
    ndimage = pytest.importorskip("scipy.ndimage")
    probabilities = np.random.default_rng(width).random((12, 2))
    filtered = ndimage.median_filter(probabilities, size=(width, 1))
    assert events_of(probabilities, TIMES, LABELS, Smoothing(160.0 * width, 0.0)) == events_of(
        filtered, TIMES, LABELS, NONE
    )


def test_one_frame_is_an_event_too():
    assert events_of(np.ones((1, 2)), TIMES[:1], LABELS, Smoothing(60.0, 0.0)) == [
        Event("dog", 87.5, 87.5),
        Event("bell", 87.5, 87.5),
    ]


def test_the_onset_score_counts_events_within_the_collar():
    pytest.importorskip("sed_eval")
    true = {"a.wav": [Event("dog", 1_000, 2_000), Event("bell", 3_000, 3_500)], "b.wav": [Event("dog", 500, 900)]}

    def found(shift: float) -> dict[str, list[Event]]:
        return {s: [Event(e.label, e.start + shift, e.end + 900 + shift) for e in true[s]] for s in true}

    assert score_events("event_onset_200ms_fms", found(0), true, LABELS) == 1.0
    assert score_events("event_onset_200ms_fms", found(150), true, LABELS) == 1.0
    assert score_events("event_onset_200ms_fms", found(250), true, LABELS) == 0.0
    assert score_events("event_onset_50ms_fms", found(150), true, LABELS) == 0.0
    # Two of three found and one too many: precision 2/3, recall 2/3.
    other = {"a.wav": [Event("dog", 1_000, 2_000), Event("dog", 5_000, 6_000)], "b.wav": [Event("dog", 510, 800)]}
    assert score_events("event_onset_200ms_fms", other, true, LABELS) == pytest.approx(2 / 3)
    # A sound in which nothing is found counts with what it misses: precision 1, recall 2/3.
    assert score_events("event_onset_200ms_fms", {"a.wav": found(0)["a.wav"]}, true, LABELS) == pytest.approx(0.8)
    assert score_events("event_onset_200ms_fms", {}, true, LABELS) == 0.0


def test_without_sed_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"scoring events needs sed_eval .*pip install 'cacophony-engine\[evaluate\]'"):
        score_events("event_onset_200ms_fms", {}, {}, LABELS)
