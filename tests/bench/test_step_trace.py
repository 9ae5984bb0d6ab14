"""Stretches of a trace find their phase and op: by the marks around them, their launch, or their forward's number."""

import json
from pathlib import Path
from typing import Any

import pytest
from cacophony.bench.step_trace import BETWEEN, OTHER, Intervals, read_step
from hypothesis import given
from hypothesis import strategies as st

MAIN, AUTOGRAD = 1, 2


def event(cat: str, name: str, start: float, end: float, thread: int = MAIN, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": end - start, "tid": thread, "args": args}


def mark(name: str, start: float, end: float, thread: int = MAIN) -> dict[str, Any]:
    return event("user_annotation", name, start, end, thread)


def launch(number: int, at: float, thread: int = MAIN) -> dict[str, Any]:
    return event("cuda_runtime", "cudaLaunchKernel", at, at + 1, thread, correlation=number)


def kernel(number: int, start: float, end: float) -> dict[str, Any]:
    return event("kernel", "k", start, end, 7, correlation=number)


STEP = [
    mark("phase:step", 1000, 1100),
    mark("phase:forward", 1010, 1040),
    mark("op:mlp", 1015, 1030),
    event("cpu_op", "aten::add", 1011, 1013, **{"Sequence number": 5}),
    event("cpu_op", "aten::linear", 1016, 1020, **{"Sequence number": 5}),
    event("cpu_op", "aten::mm", 1017, 1019, **{"Sequence number": 5}),
    mark("phase:backward", 1050, 1090),
    event(
        "cpu_op",
        "autograd::engine::evaluate_function: MmBackward0",
        1060,
        1070,
        AUTOGRAD,
        **{"Sequence number": 5, "Fwd thread id": 1},
    ),
    mark("op:attention", 1071, 1080, AUTOGRAD),
]


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"traceEvents": [*events, {"ph": "M", "name": "process_name"}]}))
    return path


def test_kernels_belong_where_they_were_launched(tmp_path: Path) -> None:
    launches = [launch(1, 1012), launch(2, 1018), launch(3, 1062, AUTOGRAD), launch(4, 1075, AUTOGRAD), launch(5, 1095)]
    kernels = [kernel(1, 1020, 1030), kernel(2, 1030, 1034), kernel(3, 1070, 1090), kernel(4, 1090, 1098)]
    late = [kernel(5, 1098, 1150), kernel(99, 1150, 1151)]  # the last was launched before the trace began
    trace = read_step(write(tmp_path / "trace.json", [*STEP, *launches, *kernels, *late]))
    assert trace.on_device
    assert trace.microseconds == 151.0
    assert trace.seconds() == pytest.approx(
        {
            ("forward", OTHER): 10e-6,
            ("forward", "linear, mlp"): 4e-6,
            ("backward", "linear, mlp"): 20e-6,
            ("backward", "attention"): 8e-6,
            (BETWEEN, OTHER): 53e-6,
        }
    )
    assert trace.calls["backward", "attention"] == 1
    assert trace.calls[BETWEEN, OTHER] == 2


def test_on_a_cpu_the_marks_cut_up_the_whole_step(tmp_path: Path) -> None:
    trace = read_step(write(tmp_path / "trace.json", STEP))
    assert not trace.on_device
    assert trace.seconds() == pytest.approx(
        {
            (BETWEEN, OTHER): 30e-6,
            ("forward", OTHER): 15e-6,
            ("forward", "linear, mlp"): 15e-6,
            ("backward", OTHER): 40e-6,  # another thread's ops do not cut up this one's time
        }
    )
    assert trace.calls == {("forward", OTHER): 1, ("forward", "linear, mlp"): 1}  # mm is part of linear


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=12), st.integers(-1, 45))
def test_an_instant_has_the_name_of_the_innermost_interval(drawn: list[tuple[int, int]], at: int) -> None:
    nested: list[tuple[int, int, str]] = []
    for start, length in sorted(set(drawn), key=lambda pair: (pair[0], -pair[1])):
        end = start + length
        if all(end <= b or start >= b for _, b, _ in nested):
            nested.append((start, end, f"{start}-{end}"))
    inside = [interval for interval in nested if interval[0] <= at < interval[1]]
    expected = max(inside, key=lambda interval: (interval[0], -interval[1]))[2] if inside else None
    assert Intervals(nested).at(at) == expected
