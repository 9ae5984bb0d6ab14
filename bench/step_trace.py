"""Where a step's time goes, read off the Chrome trace of its profile: every stretch has a phase, and an op or none.

On a GPU a stretch is a kernel, a copy or a fill, and belongs where it was launched; on a CPU it is what lies between
two marks. An op's backward by autograd is known by the sequence numbers its forward got.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..engine.phases import PHASES, STEP
from ..json_file import read_json

PHASE_MARK, OP_MARK = "phase:", "op:"
"""How marks of :mod:`.profile` begin, so that they are told from PyTorch's own."""

BETWEEN = "between"
"""What lies in no phase."""
OTHER = "other"
"""What belongs to no op."""

OP_GROUPS = {
    "linear": "linear, mlp",
    "mlp": "linear, mlp",
    "activation": "linear, mlp",
    "layer_norm": "layer_norm",
    "add_layer_norm": "layer_norm",
}
"""Ops that one path fuses and the other does not have a common name, so that paths can be compared."""

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_BACKWARD_NODE = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class Stretch:
    """From ``start``, in microseconds after the step's, for ``duration``."""

    start: float
    duration: float
    phase: str
    op: str


@dataclass(frozen=True)
class StepTrace:
    """A step's stretches in order; ``calls`` by phase and op: launches on a GPU, calls of ATen's ops on a CPU."""

    microseconds: float
    """The whole step; what no stretch covers on a GPU, it was idle."""
    stretches: Sequence[Stretch]
    calls: Mapping[tuple[str, str], int]
    on_device: bool

    def seconds(self) -> dict[tuple[str, str], float]:
        """Return the seconds of every phase and op."""
        found: defaultdict[tuple[str, str], float] = defaultdict(float)
        for stretch in self.stretches:
            found[stretch.phase, stretch.op] += stretch.duration / 1e6
        return dict(found)


def read_step(path: Path) -> StepTrace:
    """Read the trace of one step; its marks must be there."""
    events = [event for event in read_json(path)["traceEvents"] if event.get("ph") == "X"]
    marks = [event for event in events if event.get("cat") == "user_annotation"]
    (step,) = (mark for mark in marks if mark["name"] == PHASE_MARK + STEP)
    phases = Intervals(_named(marks, PHASE_MARK, PHASES))
    ops = _ops_by_thread(events, marks, step["tid"])

    def place(event: Mapping[str, Any]) -> tuple[str, str]:
        at = event["ts"]
        inside = ops.get(event["tid"])
        return phases.at(at) or BETWEEN, (inside and inside.at(at)) or OTHER

    on_device = [event for event in events if event.get("cat") in _ON_DEVICE]
    if on_device:
        return _device_trace(on_device, events, step, place)
    return _host_trace(events, step, phases, ops.get(step["tid"]) or Intervals([]), place)


class Intervals:
    """Nested named intervals of one thread, cut up so that each instant has the innermost one's name."""

    def __init__(self, intervals: Iterable[tuple[float, float, str]]) -> None:
        """Take ``(start, end, name)`` of each."""
        self.starts: list[float] = []
        self.names: list[str | None] = []
        open_: list[tuple[float, str]] = []
        for start, end, name in sorted(intervals, key=lambda interval: (interval[0], -interval[1])):
            self._close(open_, start)
            self._cut(start, name)
            # Clocks are coarse: a child may seem to outlive its parent.
            open_.append((min(end, open_[-1][0]) if open_ else end, name))
        self._close(open_, float("inf"))

    def _close(self, open_: list[tuple[float, str]], until: float) -> None:
        while open_ and open_[-1][0] <= until:
            end, _ = open_.pop()
            self._cut(end, open_[-1][1] if open_ else None)

    def _cut(self, at: float, name: str | None) -> None:
        if self.starts and self.starts[-1] == at:
            self.names[-1] = name
        else:
            self.starts.append(at)
            self.names.append(name)

    def at(self, instant: float) -> str | None:
        """Return the name of the innermost interval at ``instant``, None outside of all."""
        index = bisect_right(self.starts, instant) - 1
        return self.names[index] if index >= 0 else None


def _named(
    marks: Iterable[Mapping[str, Any]], prefix: str, names: Iterable[str] = ()
) -> list[tuple[float, float, str]]:
    wanted = {prefix + name for name in names}
    return [
        (mark["ts"], mark["ts"] + mark["dur"], mark["name"].removeprefix(prefix))
        for mark in marks
        if mark["name"] in wanted or (not wanted and mark["name"].startswith(prefix))
    ]


def _ops_by_thread(
    events: Sequence[Mapping[str, Any]], marks: Sequence[Mapping[str, Any]], forward_thread: int
) -> dict[int, Intervals]:
    intervals: defaultdict[int, list[tuple[float, float, str]]] = defaultdict(list)
    for mark in marks:
        intervals[mark["tid"]] += [
            (start, end, OP_GROUPS.get(name, name)) for start, end, name in _named([mark], OP_MARK)
        ]
    forward = Intervals(intervals[forward_thread])
    # Every event says which number the next node of the graph gets: the last to say so before it is made is its own.
    op_of: dict[int, str | None] = {}
    for event in sorted(events, key=lambda event: event["ts"]):
        number = event.get("args", {}).get("Sequence number")
        if number is not None and event["tid"] == forward_thread and not event["args"].get("Fwd thread id"):
            op_of[number] = forward.at(event["ts"])
    for event in events:
        if event["name"].startswith(_BACKWARD_NODE):
            op = op_of.get(event["args"].get("Sequence number"))
            if op is not None:
                intervals[event["tid"]].append((event["ts"], event["ts"] + event["dur"], op))
    return {thread: Intervals(found) for thread, found in intervals.items()}


def _device_trace(
    on_device: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
    step: Mapping[str, Any],
    place: Any,
) -> StepTrace:
    launches = {event["args"].get("correlation"): event for event in events if event.get("cat") in _LAUNCHES}
    stretches: list[Stretch] = []
    calls: defaultdict[tuple[str, str], int] = defaultdict(int)
    for event in sorted(on_device, key=lambda event: event["ts"]):
        launch = launches.get(event["args"].get("correlation"))
        phase, op = place(launch) if launch is not None else (BETWEEN, OTHER)
        stretches.append(Stretch(event["ts"] - step["ts"], event["dur"], phase, op))
        calls[phase, op] += 1
    end = max(event["ts"] + event["dur"] for event in (*on_device, step))
    return StepTrace(end - step["ts"], stretches, dict(calls), on_device=True)


def _host_trace(
    events: Sequence[Mapping[str, Any]], step: Mapping[str, Any], phases: Intervals, ops: Intervals, place: Any
) -> StepTrace:
    begin, end = step["ts"], step["ts"] + step["dur"]
    cuts = sorted({begin, end, *(at for at in (*phases.starts, *ops.starts) if begin < at < end)})
    stretches = [
        Stretch(start - begin, stop - start, phases.at(start) or BETWEEN, ops.at(start) or OTHER)
        for start, stop in pairwise(cuts)
    ]
    calls: defaultdict[tuple[str, str], int] = defaultdict(int)
    inside_until = begin
    for event in sorted((e for e in events if e.get("cat") == "cpu_op"), key=lambda event: event["ts"]):
        if event["name"].startswith("aten::") and inside_until <= event["ts"] < end:
            inside_until = event["ts"] + event["dur"]
            calls[place(event)] += 1
    return StepTrace(end - begin, stretches, dict(calls), on_device=False)
