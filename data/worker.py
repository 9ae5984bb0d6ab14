"""A process that decodes for another one: jobs from stdin, answers to stdout (see `workers`)."""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from .encode import encode, probe
from .tar_check import check_shard

_Task = Callable[..., tuple[dict[str, Any], bytes]]
_TASKS: dict[str, _Task] = {
    "check": check_shard,
    "encode": encode,
    "probe": probe,
}


def main() -> None:
    """Answer until stdin ends, as it does when the other process is gone, however it went."""
    # Ctrl-C reaches every process of a terminal; the one that gave the jobs ends this one. When that one is gone, so is
    # the reader of the answers: no reason for words.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # What a library prints is no part of an answer.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        _send(answers, {}, b"")
        for line in sys.stdin.buffer:
            job = json.loads(line)
            try:
                answer = _TASKS[job.pop("task")](**job)
            except OSError as error:  # a full disk, say: no fault of the clip
                sys.exit(f"{error}; check the free space")
            _send(answers, *answer)


def _send(answers: BinaryIO, values: dict[str, Any], data: bytes) -> None:
    answers.write(json.dumps(values | {"bytes": len(data)}).encode() + b"\n")
    answers.write(data)
    answers.flush()


if __name__ == "__main__":
    main()
