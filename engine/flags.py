"""Command-line flags: parsed by tyro from type hints and docstrings; a wrong one becomes a one-line error."""

import contextlib
import functools
import inspect
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, get_origin, get_type_hints

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

    signature = _with_names(function)
    bound.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    bound.__dict__["__signature__"] = signature
    del bound.__wrapped__  # whose signature would count
    return lambda argv: parse_flags(bound, prog, argv)()


def _with_names(function: Callable[..., int]) -> inspect.Signature:
    """The signature of ``function``, so that help calls a positional argument by its name: RUN, not PATH."""
    signature, hints = inspect.signature(function), get_type_hints(function, include_extras=True)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            metavar, kind = name.upper(), get_type_hints(function)[name]
            # The default of several, none, would be shown as an empty one.
            several = tyro.conf.arg(metavar=f"{metavar} ...", help_behavior_hint="(one or more)")
            is_one = get_origin(kind) is None
            hints[name] = Annotated[hints[name], tyro.conf.arg(metavar=metavar) if is_one else several]
    return signature.replace(
        parameters=[one.replace(annotation=hints[one.name]) for one in signature.parameters.values()]
    )


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
