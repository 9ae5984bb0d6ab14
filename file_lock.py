"""Locks that keep other processes from writing to the same place; one ends with its process, however that ends."""

import contextlib
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import InputError

LOCK_FILE = ".lock"


def lock(file: IO[Any], place: Path, doing: str) -> None:
    """Lock the open ``file`` until it is closed; raises InputError where another process has it, ``doing`` that.

    A file system without locks, as some clusters have, is said on stderr and holds nobody up.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{place}: another process is {doing} there; wait until it ends, or end it") from None
    except OSError as error:
        print(f"{place}: cannot be locked ({error}); see that no other process is {doing} there", file=sys.stderr)


@contextlib.contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold the lock on ``folder``, which is created where it is not there, while the body runs.

    It is on an empty file in it, ``.lock``, that stays. Raises InputError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("ab") as file:
        lock(file, folder, doing)
        yield
