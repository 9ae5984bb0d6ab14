"""Writing one shard: a USTAR tar with its wds2idx index, in the format that `shards` describes and reads."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = tarfile.BLOCKSIZE
_HASH_BYTES = 1 << 20


class ShardWriter:
    """One tar with its index, built clip by clip in memory-sized pieces; a context manager.

    Both files appear under their names only in `commit`, complete and on disk. Times and owners are 0, so that equal
    clips give equal bytes.
    """

    def __init__(self, tar_path: Path) -> None:
        self._path = tar_path
        self._unfinished = tar_path.with_suffix(".tar.tmp")
        self._file = self._unfinished.open("wb")
        self._sha256 = hashlib.sha256()
        self._lines: list[str] = []
        self.clip_digests: list[str] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def add(self, key: str, flac: bytes, record: dict[str, Any]) -> None:
        """Append a clip: its FLAC bytes and its json record, which gets the CRC-32 of the bytes as `flac_crc32`."""
        text = json.dumps(record | {"flac_crc32": zlib.crc32(flac)}, ensure_ascii=False).encode()
        self.add_members(key, flac, text)

    def add_members(self, key: str, flac: bytes, text: bytes) -> None:
        """Append a clip: the bytes of its two members."""
        components = []
        for extension, data in (("flac", flac), ("json", text)):
            name = f"{key}.{extension}"
            offset = self._append(name, data)
            components.append(f"{extension} {offset} {len(data)} {name}")
        self._lines.append(" ".join(components))
        self.clip_digests.append(hashlib.sha256(flac + text).hexdigest())

    def commit(self) -> tuple[int, str]:
        """Finish both files and give them their names; the tar's size in bytes and its SHA-256."""
        end = self._file.tell() + 2 * _BLOCK
        self._write(bytes(2 * _BLOCK + -end % tarfile.RECORDSIZE))
        size = self._file.tell()
        _sync(self._file)
        self._file.close()
        index = "\n".join([f"v1.2 {len(self._lines)}", *self._lines, ""])
        write_atomically(self._path.with_suffix(".idx"), index.encode("ascii"))
        self._unfinished.replace(self._path)
        return size, self._sha256.hexdigest()

    def _append(self, name: str, data: bytes) -> int:
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        offset = self._file.tell()
        self._write(data + bytes(-len(data) % _BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file: a reader, and a machine that lost power, sees the old one or the new one."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name at the end, complete and on disk."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        yield file
        _sync(file)
    unfinished.replace(path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
