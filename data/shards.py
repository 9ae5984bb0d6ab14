"""The shard format, and reading it.

A packed directory holds `shard-000000.tar`, … (USTAR; members `<key>.flac`, 16 kHz mono PCM_16, and `<key>.json`), for
each tar an `.idx` (DALI's wds2idx text: `v1.2 N`, then per clip `flac offset size name json offset size name`, offsets
of the data), `sizes.json` (clips per tar) and `index.json`. Its `fingerprint` is the SHA-256 over the hexadecimal
SHA-256 of every clip's two members, in order: it depends on the clips, not on how they are divided into tars.
"""

import json
import os
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from ..errors import InputError
from .audio import SAMPLE_RATE, AudioError, decode_flac_int16

FORMAT = "cacophony-shards"
VERSION = 1
INDEX_NAME = "index.json"
SIZES_NAME = "sizes.json"
MAX_RECORD_BYTES = 1 << 20
"""Size of a json member: what packing takes in stays below it."""
MAX_FLAC_BYTES = 1 << 28
"""Size of a flac member: an hour, not compressed at all, has half of it."""

_SHARD_NAME = re.compile(r"shard-[0-9]{6,9}\.tar", re.ASCII)
_COUNTS = ("clips", "captions", "synthetic_captions", "captioned_clips")
_MAX_OPEN = 256
_MAX_WORD = 100
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Clip:
    """What is known of a clip without decoding it."""

    index: int
    """Position in the shards, from 0."""
    key: str
    """ASCII name of the clip's members without the extension."""
    samples: int
    """Length at 16 kHz."""
    seconds: float
    """Duration in seconds."""
    captions: tuple[str, ...]
    """Captions that people wrote."""
    synthetic_captions: tuple[str, ...]
    """Captions that a machine wrote."""
    source: str
    """Path of the audio file, relative to the folder that was packed."""


class Shards:
    """A packed directory, open for reading from any number of threads; a context manager.

    Per clip it keeps five numbers and the key; captions are read from the tar when asked for.
    """

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.path = path
        self.fingerprint: str = index["fingerprint"]
        """SHA-256 over all clips, hexadecimal; equal for equal clips in equal order."""
        self.seconds = float(index["seconds"])
        """Duration of all clips together, in seconds."""
        self.has_captions: bool = 0 < index["clips"] == index["captioned_clips"]
        """Whether every clip has at least one caption of either kind."""
        self._tars = [path / shard["name"] for shard in index["shards"]]
        tables = [_read_idx(tar, shard) for tar, shard in zip(self._tars, index["shards"], strict=True)]
        self._first_clip = np.cumsum([0, *(len(keys) for keys, _ in tables)])
        self._keys = np.concatenate([keys for keys, _ in tables])
        self._spans = np.concatenate([spans for _, spans in tables])
        self._fds: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Shards":
        """Open a directory that `cacophony pack` wrote.

        Raises `InputError` when it is none, is of another version, a shard is missing, half written or not in the
        index, or an `.idx` cannot be the one of its tar.
        """
        folder = Path(path)
        index = read_index(folder)
        for name in stray_files(folder, index):
            raise InputError(f"{folder / name}: not in {INDEX_NAME}; remove it, or pack or merge again")
        return cls(folder, index)

    def __len__(self) -> int:
        return len(self._keys)

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the tars; a later read opens them again."""
        with self._lock:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def clip(self, i: int) -> Clip:
        """What is known of clip `i` (0 <= i < len), read from its json member.

        Raises `IndexError`, or `InputError` naming shard and key when the member is damaged.
        """
        data = self._member(i, flac=False)
        try:
            record = json.loads(data)
            captions, synthetic = tuple(record["text"]), tuple(record["synthetic_text"])
            samples, source = record["samples"], record["source"]
            "".join((*captions, *synthetic, source)).encode()
            if not (isinstance(samples, int) and samples > 0 and record["sample_rate"] == SAMPLE_RATE):
                raise ValueError(samples)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._damaged(i, "json", "not the record of a 16 kHz clip")
        return Clip(i, self._keys[i].decode(), samples, samples / SAMPLE_RATE, captions, synthetic, source)

    def read(self, i: int, start: int = 0, frames: int = -1) -> np.ndarray[Any, np.dtype[np.int16]]:
        """Samples `start` to `start + frames` (-1: to the end) of clip `i` at 16 kHz, int16 `[frames]`.

        Raises `IndexError`, or `InputError` naming shard and key when the member is damaged or shorter than that.
        """
        data = self._member(i, flac=True)
        try:
            return decode_flac_int16(data, start, frames)
        except AudioError as error:
            self._damaged(i, "flac", error.reason)

    def members(self, i: int) -> tuple[bytes, bytes]:
        """The bytes of the flac and of the json member of clip `i`; raises as `read` does."""
        return self._member(i, flac=True), self._member(i, flac=False)

    def captions(self) -> Iterator[str]:
        """Every caption, clip by clip, those that people wrote before the synthetic ones."""
        for i in range(len(self)):
            clip = self.clip(i)
            yield from clip.captions
            yield from clip.synthetic_captions

    def _member(self, i: int, *, flac: bool) -> bytes:
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of {len(self)}")
        shard = self._shard_of(i)
        offset, size = map(int, self._spans[i, :2] if flac else self._spans[i, 2:])
        try:
            fd = self._descriptor(shard)
            try:
                data = os.pread(fd, _BLOCK + size, offset - _BLOCK)
            finally:
                os.close(fd)
        except OSError as error:
            raise InputError(f"{self._tars[shard]}: {error.strerror}; pack again") from error
        extension = "flac" if flac else "json"
        if len(data) != _BLOCK + size:
            self._damaged(i, extension, f"{max(0, len(data) - _BLOCK)} of {size} bytes are there")
        if not _is_header(data[:_BLOCK], self._keys[i] + b"." + extension.encode(), size):
            self._damaged(i, extension, "the tar has another member there than the idx says")
        return data[_BLOCK:]

    def _descriptor(self, shard: int) -> int:
        """A duplicate that the caller closes: the original may be closed by another thread meanwhile."""
        with self._lock:
            if shard not in self._fds:
                self._fds[shard] = os.open(self._tars[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                if len(self._fds) > _MAX_OPEN:
                    os.close(self._fds.popitem(last=False)[1])
            self._fds.move_to_end(shard)
            return os.dup(self._fds[shard])

    def _shard_of(self, i: int) -> int:
        return int(np.searchsorted(self._first_clip, i, side="right")) - 1

    def _damaged(self, i: int, extension: str, reason: str) -> NoReturn:
        name = f"{self._tars[self._shard_of(i)]}: member {self._keys[i].decode()}.{extension}"
        raise InputError(f"{name} is damaged ({reason}); pack again")


def stray_files(folder: Path, index: dict[str, Any]) -> list[str]:
    """Shards, indices and half-written files that lie in `folder` and are not in its index, sorted."""
    known = {shard["name"] for shard in index["shards"]}
    known |= {f"{Path(name).stem}.idx" for name in known} | {INDEX_NAME, SIZES_NAME}
    found = (path.name for path in folder.iterdir() if path.suffix in (".tar", ".idx", ".tmp"))
    return sorted(name for name in found if name not in known)


def read_index(folder: Path) -> dict[str, Any]:
    """What `index.json` holds, in the form that `Shards` relies on.

    Raises `InputError` when `folder` is no packed directory, is of another version, or the index is malformed.
    """
    path = folder / INDEX_NAME
    try:
        index = json.loads(path.read_bytes())
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
    except OSError as error:
        raise InputError(f"{folder}: not a packed directory (no readable {INDEX_NAME}); run cacophony pack") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not the index of a packed directory ({error}); run cacophony pack") from error
    if index.get("version") != VERSION:
        raise InputError(
            f"{path}: version is {index.get('version')!r}; expected {VERSION}: pack again with this release"
        )
    problem = _index_problem(index)
    if problem:
        raise InputError(f"{path}: {problem}; pack again")
    return index


def _index_problem(index: dict[str, Any]) -> str:
    if index.get("sample_rate") != SAMPLE_RATE:
        return f"sample_rate is {index.get('sample_rate')!r}, expected {SAMPLE_RATE}"
    if not isinstance(index.get("fingerprint"), str) or not isinstance(index.get("seconds"), int | float):
        return "fingerprint or seconds is missing"
    shards = index.get("shards")
    if any(not isinstance(index.get(name), int) for name in _COUNTS) or not isinstance(shards, list) or not shards:
        return f"{', '.join(_COUNTS)} or shards is missing"
    for shard in shards:
        if not isinstance(shard, dict) or not _SHARD_NAME.fullmatch(str(shard.get("name"))):
            return "a shard has no name such as shard-000000.tar"
        if any(not isinstance(shard.get(name), int) or shard[name] < 1 for name in ("clips", "bytes")):
            return f"{shard['name']} has no clips or bytes"
    if len({shard["name"] for shard in shards}) != len(shards):
        return "a shard occurs twice"
    if sum(shard["clips"] for shard in shards) != index["clips"]:
        return "clips is not the sum over the shards"
    return ""


def _is_header(block: bytes, name: bytes, size: int) -> bool:
    """Whether a tar header is the one of a regular file of this name and size, as `shard_writer` writes it."""
    return (
        block[: len(name) + 1] == name + b"\0"
        and block[124:136] == b"%011o\0" % size
        and block[156:157] == tarfile.REGTYPE
        and block[257:263] == b"ustar\0"
    )


def _read_idx(tar: Path, shard: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Keys, bytes `[N]`, and (flac offset, flac size, json offset, json size), int64 `[N, 4]`, of one shard."""
    idx = tar.with_suffix(".idx")
    try:
        tar_bytes = tar.stat().st_size
        words = idx.read_bytes().split()
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; copy the shard again, or pack again") from error
    if tar_bytes != shard["bytes"]:
        raise InputError(f"{tar}: {tar_bytes} bytes, expected {shard['bytes']}; copy the shard again, or pack again")
    clips = shard["clips"]
    header = [b"v1.2", str(clips).encode()]
    if len(words) != 2 + 8 * clips or words[:2] != header or max(map(len, words)) > _MAX_WORD:
        raise InputError(f"{idx}: not an index of {clips} clips; copy the shard again, or pack again")
    columns = [words[at::8] for at in range(2, 10)]
    keys = [name.removesuffix(b".flac") for name in columns[3]]
    named = (
        all(map(bytes.isalnum, keys))
        and columns[0] == [b"flac"] * clips
        and columns[3] == [key + b".flac" for key in keys]
        and columns[4] == [b"json"] * clips
        and columns[7] == [key + b".json" for key in keys]
    )
    try:
        spans = np.array([list(map(int, columns[at])) for at in (1, 2, 5, 6)], np.int64).T
    except (ValueError, OverflowError):
        spans = np.zeros((0, 4), np.int64)
    if not (named and _tiles(spans, tar_bytes) and _ends_at(tar, int(spans[-1, 2:].sum()))):
        raise InputError(f"{idx}: not the index of its tar; copy the shard again, or pack again")
    return np.array(keys), spans


def _tiles(spans: np.ndarray, tar_bytes: int) -> bool:
    """Whether members of these sizes, header and padding each, lie where the spans say and fill a tar of that size."""
    sizes = spans[:, 1::2]
    if not len(sizes) or (sizes < 1).any() or (sizes > (MAX_FLAC_BYTES, MAX_RECORD_BYTES)).any():
        return False
    ends = np.cumsum(_BLOCK + -(-sizes.ravel() // _BLOCK) * _BLOCK)
    starts = np.concatenate([[0], ends[:-1]]) + _BLOCK
    end = int(ends[-1]) + 2 * _BLOCK
    return bool((starts == spans[:, ::2].ravel()).all()) and end + -end % tarfile.RECORDSIZE == tar_bytes


def _ends_at(tar: Path, data_end: int) -> bool:
    """Whether nothing but zeros follows a tar's last member."""
    with tar.open("rb") as file:
        file.seek(data_end)
        return not any(file.read(tarfile.RECORDSIZE + 2 * _BLOCK))
