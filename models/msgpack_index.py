"""Where each value of a msgpack buffer lies, without loading any of them.

The msgpack package builds whole objects, and makes room for as many as a header declares. A checkpoint of gigabytes is
better mapped than loaded, and its bytes are not to be believed: here nothing is allocated that the buffer does not
hold, and values, nesting and names are bounded.
"""

import mmap
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import InputError

Buffer = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes ``[start, stop)`` of a binary value, or of an extension value with its type ``code``."""

    start: int
    stop: int
    code: int | None = None


Node: TypeAlias = "dict[str, Node] | list[Node] | Span | str | int | float | None"

_MOST_VALUES = 1_000_000
_MOST_NESTED = 64
_LONGEST_TEXT = 4096
_LONGEST_NAME = 255

_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d",
    0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_LENGTHS = {
    0xC4: ("binary", ">B"), 0xC5: ("binary", ">H"), 0xC6: ("binary", ">I"),
    0xC7: ("extension", ">B"), 0xC8: ("extension", ">H"), 0xC9: ("extension", ">I"),
    0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I"),
    0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip


def index(data: Buffer, start: int = 0, stop: int | None = None, path: str = "") -> Node:
    """Return the one value that the bytes ``[start, stop)`` of ``data`` encode, binary and extension values as spans.

    ``path`` is where it lies in a larger whole, for messages.

    Raises InputError, with the path and the byte where it was found, if the bytes are not one whole value, a map has a
    key that is not a name or that it has already, or there are more values or levels than any checkpoint has.
    """
    reader = _Reader(data, start, len(data) if stop is None else stop, path)
    value = reader.value()
    if reader.left:
        raise reader.error(f"{reader.left} bytes follow the end of the data")
    return value


class _Reader:
    def __init__(self, data: Buffer, start: int, stop: int, path: str) -> None:
        self._data = data
        self._at = start
        self._stop = stop
        self._values = 0
        self._path = [path] if path else []

    @property
    def left(self) -> int:
        return self._stop - self._at

    def error(self, problem: str) -> InputError:
        where = f"leaf {'/'.join(self._path)} " if self._path else ""
        return InputError(f"{where}at byte {self._at}: {problem}; the file is damaged, or not a flax checkpoint")

    def value(self) -> Node:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise self.error(f"more than {_MOST_VALUES} values")
        kind, content = self._header()
        if kind == "scalar":
            return content
        if kind == "map":
            return self._map(content)
        if kind == "array":
            return self._array(content)
        if kind == "text":
            return self._text(content)
        code = self._number(">b") if kind == "extension" else None
        return self._span(content, code)

    def _header(self) -> tuple[str, Any]:
        """Read a value's first bytes: ("scalar", the value itself) or (its kind, its length)."""
        byte = self._number(">B")
        if byte <= 0x7F:
            return "scalar", byte
        if byte <= 0x8F:
            return "map", byte & 0x0F
        if byte <= 0x9F:
            return "array", byte & 0x0F
        if byte <= 0xBF:
            return "text", byte & 0x1F
        if byte >= 0xE0:
            return "scalar", byte - 0x100
        if byte in _CONSTANTS:
            return "scalar", _CONSTANTS[byte]
        if byte in _NUMBERS:
            return "scalar", self._number(_NUMBERS[byte])
        if byte in _FIXED_EXTENSIONS:
            return "extension", _FIXED_EXTENSIONS[byte]
        if byte in _LENGTHS:
            kind, form = _LENGTHS[byte]
            return kind, self._number(form)
        raise self.error("0xc1, which msgpack never uses")

    def _map(self, length: int) -> Node:
        self._enter(length, 2)
        entries: dict[str, Node] = {}
        for _ in range(length):
            name = self._name()
            if name in entries:
                raise self.error(f"the name {name} for the second time")
            self._path.append(name)
            entries[name] = self.value()
            self._path.pop()
        return entries

    def _array(self, length: int) -> Node:
        self._enter(length, 1)
        items: list[Node] = []
        for number in range(length):
            self._path.append(str(number))
            items.append(self.value())
            self._path.pop()
        return items

    def _enter(self, length: int, least: int) -> None:
        if length * least > self.left:
            raise self.error(f"{length} entries are declared where {self.left} bytes are left")
        if len(self._path) >= _MOST_NESTED:
            raise self.error(f"more than {_MOST_NESTED} levels")

    def _name(self) -> str:
        kind, length = self._header()
        if kind != "text" or length > _LONGEST_NAME:
            raise self.error(f"expected a name of at most {_LONGEST_NAME} bytes")
        name = self._text(length)
        if not name.isprintable():
            raise self.error("a name with unprintable characters")
        return name

    def _text(self, length: int) -> str:
        if length > _LONGEST_TEXT:
            raise self.error(f"a text of {length} bytes, expected at most {_LONGEST_TEXT}")
        span = self._span(length, None)
        try:
            return self._data[span.start : span.stop].decode()
        except UnicodeDecodeError:
            raise self.error("a text that is not UTF-8") from None

    def _span(self, length: int, code: int | None) -> Span:
        if length > self.left:
            raise self.error(f"{length} bytes are declared where {self.left} are left")
        start = self._at
        self._at += length
        return Span(start, self._at, code)

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        if size > self.left:
            raise self.error("the data ends inside a value")
        (number,) = struct.unpack_from(form, self._data, self._at)
        self._at += size
        return number
