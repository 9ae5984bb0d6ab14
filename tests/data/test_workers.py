"""Processes that work: order, bounded reading ahead, and what becomes of one that dies."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cacophony.data import workers as workers_module
from cacophony.data.workers import Workers
from cacophony.errors import RunError

WORKER = """
import json, os, sys, time
print('{"bytes": 0}', flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "signal" in job:
        os.kill(os.getpid(), job["signal"])
        time.sleep(60)
    if "exit" in job:
        sys.exit(job["exit"])
    time.sleep(job["seconds"])
    print(json.dumps({"number": job["number"], "task": job["task"], "pid": os.getpid(), "bytes": 3}), flush=True)
    print(end="abc", flush=True)
"""


@pytest.fixture(autouse=True)
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker_of_this_test.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(workers_module, "_MODULE", "worker_of_this_test")


def job(number: int, seconds: float = 0.0) -> dict[str, Any]:
    return {"number": number, "seconds": seconds}


def test_answers_come_in_the_order_of_the_jobs_from_all_processes() -> None:
    with Workers(3) as workers:
        answers = list(workers.in_order("say", (job(i, 0.03 * (i % 3 == 0)) for i in range(12))))
    assert all(answer is not None for answer in answers)
    found = [(answer.values["number"], answer.values["task"], answer.data) for answer in answers if answer]
    assert found == [(i, "say", b"abc") for i in range(12)]
    assert 1 <= len({answer.values["pid"] for answer in answers if answer}) <= 3


def test_jobs_are_drawn_only_a_little_ahead() -> None:
    drawn: list[int] = []

    def jobs() -> Iterator[dict[str, Any]]:
        for i in range(50):
            drawn.append(i)
            yield job(i)

    with Workers(2) as workers:
        for i, _ in enumerate(workers.in_order("say", jobs())):
            assert len(drawn) <= i + 5


def test_a_crash_costs_its_job_and_nothing_else() -> None:
    with Workers(1) as workers:
        jobs = [job(0), {"signal": int(signal.SIGSEGV)}, job(2)]
        first, crashed, last = workers.in_order("say", jobs)
    assert crashed is None
    assert first is not None
    assert last is not None
    assert (first.values["number"], last.values["number"]) == (0, 2)


@pytest.mark.parametrize(
    ("end", "words"), [({"signal": int(signal.SIGKILL)}, r"signal 9 \(out of memory\?\)"), ({"exit": 3}, "exit code 3")]
)
def test_a_process_that_is_ended_or_fails_ends_the_work(end: dict[str, int], words: str) -> None:
    with Workers(2) as workers, pytest.raises(RunError, match=words):
        list(workers.in_order("say", [job(0), end]))


def test_a_process_that_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_MODULE", "json.no_such_module")
    with Workers(1) as workers, pytest.raises(RunError, match="cannot be started"):
        list(workers.in_order("say", [job(0)]))


def test_leaving_does_not_wait_for_the_work() -> None:
    with Workers(2) as workers:
        assert next(workers.in_order("say", [job(0), *(job(i, 600) for i in range(1, 9))])) is not None
    assert all(process.returncode is not None for process in workers._processes)


def test_the_real_worker_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workers_module, "_MODULE", "cacophony.data.worker")
    (tmp_path / "a.wav").write_text("no audio")
    jobs = [{"name": "a.wav", "audio": [str(tmp_path / "a.wav"), 0, -1], "sidecar": None, "scratch": str(tmp_path)}]
    with Workers(1) as workers:
        (answer,) = workers.in_order("encode", jobs)
    assert answer is not None
    assert answer.values["reason"] == "not an audio file libsndfile can read"
    assert json.dumps(answer.values)


def test_a_disk_that_cannot_be_written_ends_the_work_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers_module, "_MODULE", "cacophony.data.worker")
    (tmp_path / "a.tar").write_bytes(bytes(2_000))
    member = {"name": "a.wav", "audio": [str(tmp_path / "a.tar"), 0, 1_000], "sidecar": None}
    with Workers(1) as workers, pytest.raises(RunError, match="exit code 1"):
        list(workers.in_order("encode", [member | {"scratch": str(tmp_path / "gone")}]))
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "No such file or directory" in said[0]
