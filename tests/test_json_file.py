"""JSON files appear whole, and damage is named."""

from pathlib import Path

import pytest
from cacophony.errors import InputError
from cacophony.json_file import read_json, write_json


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]", b"", b"[" * 100_000, b'{"a": ' + b"1" * 5_000 + b"}", None])
def test_a_file_that_is_not_a_json_object_is_named(tmp_path: Path, content: bytes | None):
    path = tmp_path / "state.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"state\.json.*JSON"):
        read_json(path)


def test_what_was_written_comes_back_and_nothing_else_stays(tmp_path: Path):
    path = tmp_path / "state.json"
    for content in ({"a": 1}, {"caption": "Brücke", "ids": [1, None, 2.5]}):
        write_json(path, content)
        assert read_json(path) == content
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
