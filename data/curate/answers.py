"""Answers of an endpoint, kept on disk under a digest of what was asked: nothing that was answered is paid again.

One JSON object a line, only ever appended to and on disk before it counts. A line that a kill cut short is dropped.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import InputError
from ...file_lock import lock

MAX_LINE_BYTES = 1 << 20
_BEGIN = b'{"key": "'


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    text: str
    """Of the model, as it came."""
    refused: bool
    """Whether the endpoint itself says that the model refused."""
    complete: bool
    """False where the answer was cut off at its longest."""
    tokens_in: int
    """Of the request, as the endpoint counts; 0 where it does not say."""
    tokens_out: int
    """Of the answer."""


class Answers(Mapping[str, Answer]):
    """The answers in one file, which this process alone writes; a context manager.

    The file is made with the first answer. Raises `InputError` where another process writes it or it is something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answers: dict[str, Answer] = {}
        self._file: BinaryIO | None = None
        if path.exists():
            try:
                self._open()
            except BaseException:
                self.__exit__()
                raise

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def __iter__(self) -> Any:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, key: str, answer: Answer) -> None:
        """Keep `answer` under `key`; it is on disk when this returns."""
        if self._file is None:
            self._open()
        file = self._file
        assert file is not None
        file.write(json.dumps({"key": key} | asdict(answer)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        self._answers[key] = answer

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = file = self._path.open("a+b")
        lock(file, self._path, "writing answers")
        file.seek(0)
        whole = 0
        while line := file.readline(MAX_LINE_BYTES):
            if not line.endswith(b"\n"):
                if len(line) == MAX_LINE_BYTES:
                    raise self._wrong(whole, "a line over its longest")
                # Dropped is what a kill cut short, and never the text of a file that the user named by mistake.
                if line[: len(_BEGIN)] != _BEGIN[: len(line)]:
                    raise self._wrong(whole, "no answer that was cut short")
                break
            key, answer = self._parse(line, whole)
            self._answers[key] = answer
            whole += len(line)
        file.truncate(whole)

    def _parse(self, line: bytes, offset: int) -> tuple[str, Answer]:
        try:
            entry = json.loads(line)
            types = {"text": str, "refused": bool, "complete": bool, "tokens_in": int, "tokens_out": int, "key": str}
            if not isinstance(entry, dict) or {name: type(value) for name, value in entry.items()} != types:
                raise ValueError("not an answer")
        except (ValueError, RecursionError) as error:
            raise self._wrong(offset, str(error)) from None
        return entry.pop("key"), Answer(**entry)

    def _wrong(self, offset: int, why: str) -> InputError:
        return InputError(
            f"{self._path}: no file of answers (at byte {offset}: {why}); give another, or remove what is damaged"
        )
