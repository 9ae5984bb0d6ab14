"""What a tar from others holds, found by its headers alone: nothing is extracted, no name is followed.

Plain, PAX and GNU tars are understood as far as regular files go. Whatever else a member is (a link, a device, a sparse
file), and whatever its name would do on a disk, is said of it and left to the caller.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .captions import leaves_folder

NOT_REGULAR = "tar member that is a link or another special file"
ESCAPES = "tar member whose path leaves the folder"
LONG_NAME = "tar member whose name is over 4096 characters"
TWICE = "tar member whose name occurs twice"
DAMAGED = "damaged tar: what follows cannot be read"

_BLOCK = tarfile.BLOCKSIZE
_MAX_LONG_HEADER = 1 << 20
_MAX_NAME = 4_096
_PAX_RECORD = re.compile(rb"[0-9]+ (path|size)=([^\n]*)\n")
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_LONG = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class Member(NamedTuple):
    """A member of a tar, or the place where the tar cannot be read further."""

    name: str
    """As written, as far as 4096 characters."""
    offset: int
    """Where the data begin, in bytes."""
    size: int
    """Bytes of data."""
    problem: str
    """Why it must not be used; empty where it may be."""


def members(path: str | os.PathLike[str]) -> Iterator[Member]:
    """Every member that is no directory, in the order of the tar; a damaged tar ends with a member of that problem.

    Memory does not depend on what the headers claim. Raises `OSError` when the file cannot be read.
    """
    seen: set[str] = set()
    with Path(path).open("rb") as file:
        for member, is_regular in _walk(file):
            problem = member.problem
            if not problem and not is_regular:
                problem = NOT_REGULAR
            elif not problem and len(member.name) > _MAX_NAME:
                problem = LONG_NAME
            elif not problem and leaves_folder(member.name):
                problem = ESCAPES
            elif not problem and member.name in seen:
                problem = TWICE
            seen.add(member.name)
            yield member._replace(name=member.name[:_MAX_NAME], problem=problem)


def _walk(file: BinaryIO) -> Iterator[tuple[Member, bool]]:
    total = file.seek(0, os.SEEK_END)
    at, name, size = 0, "", -1  # a name or size that stands in a header of its own, for the next member
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if block == bytes(_BLOCK):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:  # also where the file simply ends
            break
        long = header.type in _LONG
        length = header.size if long or size < 0 else size
        data = at + _BLOCK
        if not 0 <= length <= total - data or (long and length > _MAX_LONG_HEADER):
            break
        if header.type == tarfile.XHDTYPE:
            for key, value in _PAX_RECORD.findall(file.read(length)):
                if key == b"path":
                    name = value.decode("utf-8", "surrogateescape")
                elif value.isdigit() and len(value) < 20:
                    size = int(value)
        elif header.type == tarfile.GNUTYPE_LONGNAME:
            name = file.read(length).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            if header.type != tarfile.DIRTYPE:
                yield Member(name or header.name, data, length, ""), header.type in _REGULAR
            name, size = "", -1
        at = data + -(-length // _BLOCK) * _BLOCK
    yield Member("", at, 0, DAMAGED), True
