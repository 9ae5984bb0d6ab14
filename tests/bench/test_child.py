"""A module in a process of its own: its lines come back, also when its time is over."""

import json

import pytest
from cacophony.bench.child import Finished, run_module


def test_lines_come_back_and_stdin_is_read() -> None:
    done = run_module("json.tool", ["--compact"], stdin='{"a": [1, 2]}')
    assert done == Finished(['{"a":[1,2]}'], 0, "")
    assert done.rows == [{"a": [1, 2]}]


def test_a_failure_has_its_last_line() -> None:
    done = run_module("json.tool", stdin="{")
    assert done.returncode == 1
    assert "Expecting property name" in done.complaint


def test_a_child_is_stopped_when_its_time_is_over_and_keeps_what_it_wrote() -> None:
    loop = 'print("{\\"row\\": 1}\\n{\\"ro", end="", flush=True); time.sleep(60)'
    done = run_module("timeit", ["-n1", "-r1", "-s", "import time", loop], seconds=2.0)
    assert done.returncode is None
    assert done.rows == [{"row": 1}]


def test_the_checkout_is_the_package_and_bench_hides_nothing() -> None:
    code = (
        "import importlib.util, json, sys, cacophony; "
        "print(json.dumps([cacophony.__file__, importlib.util.find_spec('harness') is None]))"
    )
    done = run_module("timeit", ["-n1", "-r1", code])
    file, hidden = json.loads(done.lines[0])
    from cacophony.bench.from_checkout import ROOT

    assert file == str(ROOT / "__init__.py")
    assert hidden


@pytest.mark.parametrize("line", ["", "no JSON", '{"cut":'])
def test_what_is_no_row_is_left_out(line: str) -> None:
    assert Finished([line, '{"row": 2}'], 0, "").rows == [{"row": 2}]
