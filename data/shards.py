"""The shard format, and reading it.

A packed directory holds `shard-000000.tar`, … (USTAR; members `<key>.flac`, 16 kHz mono PCM_16, and `<key>.json`), for
each tar an `.idx` (DALI's wds2idx text: `v1.2 N`, then per clip `flac offset size name json offset size name`, offsets
of the data), `sizes.json` (clips per tar) and `index.json`. Its `fingerprint` is the SHA-256 over the hexadecimal
SHA-256 of every clip's two members, in order: it depends on the clips, not on how they are divided into tars.
"""

import json
import os
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
from .shards_files import BLOCK, INDEX_NAME, is_header, read_idx, read_index, stray_files

_MAX_OPEN = 256


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
        tables = [read_idx(tar, shard) for tar, shard in zip(self._tars, index["shards"], strict=True)]
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
                data = os.pread(fd, BLOCK + size, offset - BLOCK)
            finally:
                os.close(fd)
        except OSError as error:
            raise InputError(f"{self._tars[shard]}: {error.strerror}; pack again") from error
        extension = "flac" if flac else "json"
        if len(data) != BLOCK + size:
            self._damaged(i, extension, f"{max(0, len(data) - BLOCK)} of {size} bytes are there")
        if not is_header(data[:BLOCK], self._keys[i] + b"." + extension.encode(), size):
            self._damaged(i, extension, "the tar has another member there than the idx says")
        return data[BLOCK:]

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
