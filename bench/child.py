"""A module of this package, or pytest, in a process of its own: what breaks it or its device breaks nothing else."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .from_checkout import ROOT


@dataclass(frozen=True)
class Finished:
    """What a child wrote to stdout, line by line, and how it ended."""

    lines: list[str]
    returncode: int | None
    """None where it was stopped because its time was over."""
    complaint: str
    """Last line it wrote to stderr."""

    @property
    def rows(self) -> list[Any]:
        """The JSON objects among the lines; one that was cut off by the end of the time is left out."""
        found = []
        for line in self.lines:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found


def run_module(
    module: str,
    arguments: Sequence[str] = (),
    *,
    stdin: str = "",
    seconds: float | None = None,
    root: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run ``python -m module arguments`` with the checkout at ``root`` as the package, for at most ``seconds``.

    ``environment`` is added to this process's.
    The child and all its own children are killed when the time is over; what it wrote until then is returned.
    """
    command = [sys.executable, str(root / "bench" / "from_checkout.py"), module, *arguments]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as given,
        tempfile.TemporaryFile("w+", errors="replace") as written,
        tempfile.TemporaryFile("w+", errors="replace") as complaints,
    ):
        given.write(stdin)
        given.seek(0)
        child = subprocess.Popen(
            command,
            stdin=given,
            stdout=written,
            stderr=complaints,
            cwd=root,
            env=os.environ | dict(environment or {}),
            start_new_session=True,
        )
        try:
            returncode = child.wait(seconds)
        except subprocess.TimeoutExpired:
            returncode = None
        finally:
            _kill(child)
        for file in (written, complaints):
            file.seek(0)
        lines = complaints.read().strip().splitlines() or [""]
        return Finished(written.read().splitlines(), returncode, lines[-1])


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
