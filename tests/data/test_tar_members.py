"""Tars from others: what Python's tarfile finds, and what nobody should follow."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from cacophony.data.tar_members import DAMAGED, ESCAPES, LONG_NAME, NOT_REGULAR, TWICE, members


def write(path: Path, entries: list[tuple[str, bytes, dict[str, Any]]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data, values in entries:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            for key, value in values.items():
                setattr(header, key, value)
            tar.addfile(header, io.BytesIO(data))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_offsets_are_those_of_tarfile(tmp_path: Path, form: int) -> None:
    names = ["a.flac", "b/c.json", "d" * 60 + "/" + "e" * 70, "empty"]
    if form != tarfile.USTAR_FORMAT:
        names += ["f" * 300, "größe/日本.wav"]
    entries = [(name, bytes(100 * i), {}) for i, name in enumerate(reversed(names))]
    path = write(tmp_path / "a.tar", [("folder", b"", {"type": tarfile.DIRTYPE}), *entries], form)
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size, "") for member in tar if member.isreg()]
    assert [tuple(member) for member in members(path)] == expected


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("../a.wav", {}, ESCAPES),
        ("a/../../b.wav", {}, ESCAPES),
        ("/etc/a.wav", {}, ESCAPES),
        ("C:\\a.wav", {}, ESCAPES),
        ("a.wav", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, NOT_REGULAR),
        ("a.wav", {"type": tarfile.LNKTYPE, "linkname": "../b"}, NOT_REGULAR),
        ("a.wav", {"type": tarfile.CHRTYPE}, NOT_REGULAR),
        ("a.wav", {"type": tarfile.FIFOTYPE}, NOT_REGULAR),
        ("first.wav", {}, TWICE),
    ],
)
def test_hostile_members_are_named_and_the_others_stay(
    tmp_path: Path, name: str, values: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path / "a.tar", [("first.wav", b"1", {}), (name, b"", values), ("last.wav", b"3", {})])
    assert [(member.name, member.problem) for member in members(path)] == [
        ("first.wav", ""),
        (name, problem),
        ("last.wav", ""),
    ]


def test_a_name_of_a_megabyte_is_not_taken(tmp_path: Path) -> None:
    entries = [("x" * 1_000_000, b"1", {}), ("a.wav", b"2", {})]
    first, last = members(write(tmp_path / "a.tar", entries, tarfile.PAX_FORMAT))
    assert (first.name, first.problem) == ("x" * 4_096, LONG_NAME)
    assert (last.name, last.problem) == ("a.wav", "")


def test_damage_ends_the_list_and_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.wav", bytes(2_000), {}), ("b.wav", bytes(2_000), {})])
    data = path.read_bytes()
    second = 512 + 2_048
    for damaged in (
        data[:1_000],
        data[: second + 1_000],
        data[:second],
        data[: second + 7] + b"?" + data[second + 8 :],
    ):
        path.write_bytes(damaged)
        *good, last = members(path)
        assert last.problem == DAMAGED
        assert [member.name for member in good] == ["a.wav"][: len(damaged) > 1_000]
    path.write_bytes(b"")
    assert [member.problem for member in members(path)] == [DAMAGED]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 1 << 33
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 34)  # the bytes are there, as a hole
    assert [member.problem for member in members(tmp_path / "a.tar")] == [DAMAGED]
