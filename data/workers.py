"""Work in other processes, answers in order.

Each thread of a pool has one process of its own, started as `python -m cacophony.data.worker` for its first job. A job
is a line of JSON; an answer is a line of JSON and a block of bytes. A decoder that crashes on a hostile file takes its
process along and nothing else. Jobs are drawn from their iterator only a little ahead of the answers.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple

from ..errors import RunError

_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
_MODULE = f"{__package__}.worker"

CRASHED = "the decoder crashes on it"
"""Why a clip cannot be used of which there is no answer."""


class Answer(NamedTuple):
    """What a task returned."""

    values: dict[str, Any]
    """What JSON can hold."""
    data: bytes
    """Everything else; empty where there is nothing."""


class Workers:
    """`count` processes that run the tasks of `worker`; a context manager, at whose end they are gone."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="workers")
        self._own = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            _end(process)

    def in_order(self, task: str, jobs: Iterable[dict[str, Any]]) -> Iterator[Answer | None]:
        """The answer to each job, in the order of the jobs; None where the process crashed on it.

        At most `2 * count` jobs are under way or waiting to be taken, so memory does not grow with their number. Raises
        `RunError` when a process cannot be started, fails, or is ended from outside.
        """
        remaining = iter(jobs)
        pending: deque[Future[Answer | None]] = deque()
        for job in islice(remaining, 2 * self._count):
            pending.append(self._pool.submit(self._run, task, job))
        while pending:
            yield pending.popleft().result()
            for job in islice(remaining, 1):
                pending.append(self._pool.submit(self._run, task, job))

    def _run(self, task: str, job: dict[str, Any]) -> Answer | None:
        process = self._process()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"task": task} | job).encode() + b"\n")
            process.stdin.flush()
            return _answer(process)
        except (BrokenPipeError, EOFError) as error:
            del self._own.process
            code = process.wait()
            if -code in _CRASHES:
                return None
            raise RunError(f"a worker process ended with {_how(code)}, at {job}; its own words are above") from error

    def _process(self) -> subprocess.Popen[bytes]:
        if not hasattr(self._own, "process"):
            # The package is found where it was found here, and never in the current directory.
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            with self._lock:
                if self._closed:
                    raise RunError("no worker process is left")
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", _MODULE],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                )
                self._processes.append(process)
            try:
                _answer(process)
            except EOFError:
                raise RunError(f"{sys.executable} -m {_MODULE} cannot be started; its own words are above") from None
            self._own.process = process
        return self._own.process


def _answer(process: subprocess.Popen[bytes]) -> Answer:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    values = json.loads(line)
    size = values.pop("bytes")
    data = process.stdout.read(size)
    if len(data) != size:
        raise EOFError
    return Answer(values, data)


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # half a job was waiting to be sent
                pipe.close()
    process.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} (out of memory?)" if -code == signal.SIGKILL else f"signal {-code}"
