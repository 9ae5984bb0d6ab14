"""Whether an Ogg file is whole: libsndfile leaves out damaged pages, the end, and second streams in silence."""

import zlib
from pathlib import Path
from typing import BinaryIO

_HEADER = 27
_BEGIN_OF_STREAM, _END_OF_STREAM = 2, 4
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_is_whole(path: Path) -> bool:
    """Whether every page follows the one before it with the right CRC, and the last one ends its stream (RFC 3533).

    False also where a stream begins behind the end of another, as in files that were joined.
    """
    flags, ended = 0, False
    with path.open("rb") as file:
        while page := _page(file):
            if page[:4] != b"OggS" or _crc(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[22:26], "little"):
                return False
            flags = page[5]
            if ended and flags & _BEGIN_OF_STREAM:
                return False
            ended |= bool(flags & _END_OF_STREAM)
    return bool(flags & _END_OF_STREAM)


def _page(file: BinaryIO) -> bytes:
    """The next bytes that would be a page, at most 65307; empty at the end of the file."""
    header = file.read(_HEADER)
    if len(header) < _HEADER:
        return header
    lengths = file.read(header[26])
    return header + lengths + file.read(sum(lengths))


def _crc(page: bytes) -> int:
    """Ogg's CRC (polynomial 0x04c11db7, bits not reflected, from 0), by zlib's, which reads the bits the other way."""
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
