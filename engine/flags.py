"""Command-line flags: parsed by tyro from type hints and docstrings; a wrong one becomes a one-line error."""

import contextlib
import functools
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import tyro

from ..errors import InputError


def parse_flags(target: Callable[..., Any], prog: str, argv: Sequence[str], **options: Any) -> Any:
    """Build ``target`` (a dataclass or function) from ``argv``; ``options`` go to ``tyro.cli``.

    ``--help`` prints and exits. Raises InputError, in one line, where a flag is unknown, missing or has a wrong value.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), mock.patch.dict(os.environ, {"COLUMNS": "400", "NO_COLOR": "1"}):
            return tyro.cli(target, prog=prog, args=list(argv), **options)
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise InputError(f"{_one_line(box.getvalue())} (`{prog} --help` lists all)") from None
    finally:
        if sys.exc_info()[0] is None:
            sys.stderr.write(box.getvalue())


def command(function: Callable[..., int], prog: str) -> Callable[[Sequence[str]], int]:
    """Turn a function into a command: parse its arguments from flags first, then call it."""

    @functools.wraps(function)
    def bound(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(function, *args, **kwargs)

    return lambda argv: parse_flags(bound, prog, argv)()


def _one_line(box: str) -> str:
    """Take the message, and the nearest flag if one is offered, out of the box that tyro draws."""
    lines = [line.strip(" │") for line in box.splitlines() if line.startswith("│")]
    message: list[str] = []
    for line in lines:
        if set(line) <= {"─"}:
            break
        message.append(line)
    text = " ".join(part for part in message if part)
    for line, following in itertools.pairwise(lines):
        if line.startswith("Perhaps you meant"):
            return f"{text}; did you mean {re.split(r'[ ,]', following.strip())[0]}?"
    return text
