"""Command-line flags: parsed by tyro from type hints and docstrings; a wrong one becomes a one-line error."""

import contextlib
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tyro

from ..errors import InputError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def parse_flags(target: Callable[..., Any], prog: str, argv: Sequence[str], **options: Any) -> Any:
    """Build ``target`` (a dataclass or function) from ``argv``; ``options`` go to ``tyro.cli``.

    ``--help`` prints and exits. Raises InputError, in one line, where a flag is unknown, missing or has a wrong value.
    """
    box = io.StringIO()
    asks_for_help = not {"-h", "--help"}.isdisjoint(argv)
    try:
        with contextlib.redirect_stderr(box), contextlib.nullcontext() if asks_for_help else _wide():
            return tyro.cli(target, prog=prog, args=list(argv), **options)
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise InputError(f"{_one_line(box.getvalue())} (`{prog} --help` lists all)") from None


def command(function: Callable[..., int], prog: str) -> Callable[[Sequence[str]], int]:
    """Turn a function into a command: parse its arguments from flags first, then call it."""

    @functools.wraps(function)
    def bound(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(function, *args, **kwargs)

    return lambda argv: parse_flags(bound, prog, argv)()


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Let tyro draw its box so wide that no word of a message is broken."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _one_line(box: str) -> str:
    """Take the message, and the nearest flag if one is offered, out of the box that tyro draws.

    The sections of the box are divided by rules. Where the terminal is not UTF-8 the box has no border, and its title
    is a section of its own.
    """
    sections: list[list[str]] = [[]]
    for line in _COLOUR.sub("", box).splitlines():
        text = line.strip(" │")
        if text.startswith(("╭", "╰")) or (text and set(text) <= {"─", "-"}):
            sections.append([])
        elif text:
            sections[-1].append(text)
    sections = [section for section in sections if section]
    has_border = "│" in box
    message = " ".join(sections[0 if has_border or len(sections) == 1 else 1]) if sections else "wrong arguments"
    for section in sections:
        if section[0].startswith("Perhaps you meant") and len(section) > 1:
            return f"{message}; did you mean {re.split(r'[ ,]', section[1])[0]}?"
    return message
