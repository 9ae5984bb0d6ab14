"""Events from the probabilities of frames, and their scores by sed_eval, as in HEAR's event tasks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...extras import require
from .hear_task import Event

Floats = NDArray[np.floating]
Events = Mapping[str, Sequence[Event]]
"""Name of a sound to its events."""

_THRESHOLD = 0.5
_ONSET = {"evaluate_onset": True, "evaluate_offset": False}
_SCORES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "event_onset_200ms_fms": ("EventBasedMetrics", "f_measure", {**_ONSET, "t_collar": 0.2}),
    "event_onset_50ms_fms": ("EventBasedMetrics", "f_measure", {**_ONSET, "t_collar": 0.05}),
    "event_onset_offset_50ms_20perc_fms": (
        "EventBasedMetrics",
        "f_measure",
        {"evaluate_onset": True, "evaluate_offset": True, "t_collar": 0.05, "percentage_of_length": 0.2},
    ),
    "segment_1s_er": ("SegmentBasedMetrics", "error_rate", {"time_resolution": 1.0}),
}
EVENT_SCORES = tuple(_SCORES)
"""Names of the scores, as a task's metadata has them."""
LOWER_IS_BETTER = frozenset({"segment_1s_er"})


@dataclass(frozen=True)
class Smoothing:
    """How probabilities become events; both in milliseconds."""

    median_ms: float
    """Width of a median filter over time."""
    shortest_ms: float
    """Events whose first and last frame are closer than this are left out."""


SMOOTHINGS = tuple(Smoothing(250.0, shortest) for shortest in (125.0, 250.0))
"""What the HEAR kit chooses from, on the validation split."""


def frame_targets(events: Sequence[Event], times: Floats, labels: Sequence[str]) -> NDArray[np.float32]:
    """Return 1 where a label sounds at a time, its start and end included: float32 ``[T, C]``."""
    column = {label: index for index, label in enumerate(labels)}
    targets = np.zeros((len(times), len(labels)), np.float32)
    for event in events:
        targets[(times >= event.start) & (times <= event.end), column[event.label]] = 1.0
    return targets


def events_of(probabilities: Floats, times: Floats, labels: Sequence[str], smoothing: Smoothing) -> list[Event]:
    """Join neighbouring frames ``[T, C]`` above one half into events, from the first one's time to the last one's."""
    step = float(np.mean(np.diff(times))) if len(times) > 1 else np.inf
    active = _median(probabilities, round(smoothing.median_ms / step)) > _THRESHOLD
    found = [
        Event(label, float(times[first]), float(times[last]))
        for column, label in enumerate(labels)
        for first, last in _runs(active[:, column])
        if times[last] - times[first] >= smoothing.shortest_ms
    ]
    return sorted(found, key=lambda event: event.start)


def score_events(name: str, found: Events, true: Events, labels: Sequence[str]) -> float:
    """Return the score ``name`` of found events, over all sounds of ``true``; 0 where it is undefined.

    Raises InputError where sed_eval is not installed.
    """
    metrics_name, field, settings = _SCORES[name]
    sound_event = require_sed_eval().sound_event
    metrics = getattr(sound_event, metrics_name)(event_label_list=list(labels), **settings)
    for sound in true:
        metrics.evaluate(
            reference_event_list=_container(true[sound], sound),
            estimated_event_list=_container(found.get(sound, ()), sound),
        )
    value = float(metrics.results_overall_metrics()[field][field])
    return value if np.isfinite(value) else 0.0


def require_sed_eval() -> Any:
    """Import sed_eval; raises InputError that names the extra where it is not installed."""
    return require("sed_eval", "sed_eval", "scoring events", extra="evaluate")


def _container(events: Sequence[Event], sound: str) -> Any:
    containers = require("dcase_util.containers", "dcase_util", "scoring events", extra="evaluate")
    rows = [
        {"event_label": e.label, "event_onset": e.start / 1000, "event_offset": e.end / 1000, "file": sound}
        for e in events
    ]
    return containers.MetaDataContainer(rows)


def _median(rows: Floats, width: int) -> Floats:
    """Filter ``[T, C]`` over time; the ends are mirrored, of an even width the upper median counts (scipy's rules)."""
    if width < 2:
        return rows
    before = width // 2
    padded = np.pad(rows, ((before, width - 1 - before), (0, 0)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
    return np.sort(windows, axis=-1)[..., width // 2]


def _runs(active: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and last index of each run of true values."""
    edges = np.diff(active.astype(np.int8), prepend=0, append=0)
    yield from zip(np.flatnonzero(edges == 1).tolist(), (np.flatnonzero(edges == -1) - 1).tolist(), strict=True)
