"""The index of a msgpack buffer: every value where msgpack put it, and no room made for what the bytes only claim."""

import tracemalloc
from typing import Any

import msgpack
import pytest
from cacophony.errors import InputError
from cacophony.models.msgpack_index import Node, Span, index
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=60)
SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 17, 255, 256, 65_535, 65_536])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | SIZES.map(bytes)
    | st.builds(msgpack.ExtType, st.integers(0, 127), SIZES.map(bytes)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(NAMES, inner, max_size=20),
    max_leaves=30,
)


def packed(content: Any) -> bytes:
    return msgpack.packb(content) or b""


def loaded(data: bytes, node: Node) -> Any:
    """What `node` stands for, spans read from `data`."""
    match node:
        case dict():
            return {name: loaded(data, child) for name, child in node.items()}
        case list():
            return [loaded(data, child) for child in node]
        case Span(start, stop, None):
            return data[start:stop]
        case Span(start, stop, int(code)):
            return code, data[start:stop]
    return node


def refused(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        index(data)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return message


def unpacked(data: bytes) -> Any:
    return msgpack.unpackb(data, ext_hook=lambda code, content: (code, content))


@given(VALUES.map(packed))
def test_what_msgpack_packs_is_found(data: bytes):
    assert loaded(data, index(data)) == unpacked(data)
    around = b"\xc1" + data + b"\xc1"
    assert loaded(around, index(around, 1, 1 + len(data))) == unpacked(data)


@given(st.floats(width=32, allow_nan=False))
def test_single_precision_numbers_are_found(number: float):
    assert index(msgpack.packb(number, use_single_float=True) or b"") == number


@given(VALUES.map(packed), st.data())
def test_a_part_of_the_bytes_or_more_of_them_is_refused(data: bytes, draw: st.DataObject):
    refused(data[: draw.draw(st.integers(0, len(data) - 1))])
    assert f"at byte {len(data)}: 1 bytes follow the end" in refused(data + b"\x00")


@given(st.binary(max_size=60).map(lambda data: data.replace(b"\xff", b"\xfe")))  # msgpack takes type -1 for a time
def test_any_bytes_are_what_msgpack_says_or_refused_in_a_line(data: bytes):
    try:
        node = index(data)
    except InputError:
        refused(data)
    else:
        assert repr(loaded(data, node)) == repr(unpacked(data))  # NaN is not equal to itself


@pytest.mark.parametrize("code", [0xC6, 0xC9, 0xDB, 0xDD, 0xDF])
def test_a_length_beyond_the_bytes_makes_no_room(code: int):
    data = b"\x81\xa6params\x81\xa1a" + bytes([code]) + b"\xff\xff\xff\xff\x01"
    tracemalloc.start()
    try:
        message = refused(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert "leaf params/a at byte" in message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "at byte 0: the data ends inside a value"),
        (b"\x81\xa1a\xc1", "leaf a at byte 4: 0xc1"),
        (b"\x81\xa1\xff\x00", "at byte 3: a text that is not UTF-8"),
        (b"\x82\xa1a\x00\xa1a\x00", "at byte 6: the name a for the second time"),
        (packed({"params": {1: 2}}), "leaf params at byte 10: expected a name"),
        (packed({"a" * 256: 1}), "expected a name of at most 255 bytes"),
        (packed({"a\x1b[31m": 1}), "a name with unprintable characters"),
        (packed(["a" * 4097]), "leaf 0 at byte 4: a text of 4097 bytes"),
        (b"\x91" * 64 + b"\x00", None),
        (b"\x91" * 65 + b"\x00", "more than 64 levels"),
        (b"\xdd\x00\x0f\x42\x40" + b"\x00" * 1_000_000, "more than 1000000 values"),
    ],
)
def test_what_no_checkpoint_holds_is_refused(data: bytes, expected: str | None):
    if expected is None:
        index(data)
    else:
        assert expected in refused(data)
