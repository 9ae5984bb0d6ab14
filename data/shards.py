"""The shard format, and reading it.

A packed directory holds `shard-000000.tar`, … (USTAR; members `<key>.flac`, 16 kHz mono PCM_16, and `<key>.json`, what
is known of the clip and the CRC-32 of its FLAC member), for each tar an `.idx` (DALI's wds2idx text: `v1.2 N`, then per
clip `flac offset size name json offset size name`, offsets of the data), `sizes.json` (clips per tar) and `index.json`.
Its `fingerprint` is the SHA-256 over the hexadecimal SHA-256 of every clip's two members, in order: it depends on the
clips, not on how they are divided into tars.
"""

import copy
import hashlib
import json
import logging
import os
import threading
import weakref
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from ..errors import InputError
from .audio import SAMPLE_RATE, AudioError, decode_flac_int16, printable
from .shards_files import BLOCK, INDEX_NAME, is_header, read_idx, read_index, stray_files

_MAX_OPEN = 256
_SOURCES_NAMED = 20

_log = logging.getLogger(__name__)


def source_of(path: str) -> str:
    """The source that a packed file belongs to: the first folder of its path; "unknown" where the path is not known."""
    return "unknown" if not path else PurePosixPath(path).parts[0] if "/" in path else "."


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
    flac_crc32: int
    """CRC-32 of the FLAC member."""


class DamagedMember(InputError):
    """A member of a shard that is not what was packed."""

    def __init__(self, tar: Path, name: str, reason: str, index: int, clip_source: str) -> None:
        self.what = f"{tar}: member {name} is damaged ({reason})"
        """Which member, and what is wrong with it."""
        self.index = index
        """The clip's position in the shards."""
        self.clip_source = clip_source
        """The clip's source; empty where its record cannot be read."""
        super().__init__(f"{self.what}; pack again")


class Shards:
    """A packed directory, open for reading from any number of threads; a context manager.

    Where nobody holds it any more, it closes its tars itself.

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
        self._chosen: np.ndarray | None = None
        self._fds: OrderedDict[int, int] = OrderedDict()
        weakref.finalize(self, _close, self._fds)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | os.PathLike[str], sources: Sequence[str] = ()) -> "Shards":
        """Open a directory that `cacophony pack` wrote; of `sources`, where they are named, the clips of these alone.

        A source is the first folder of the packed path, as `shards stats` lists them. To choose, every record is read
        once; a clip whose record is damaged has no known source, is left out, and named in the log. What is chosen is
        like shards of its own: clips count from 0, and the fingerprint is another than that of the whole.

        Raises `InputError` when it is none, is of another version, a shard is missing, half written or not in the
        index, an `.idx` cannot be the one of its tar, or a source is named that no clip has, with those there are.
        """
        folder = Path(path)
        index = read_index(folder)
        for name in stray_files(folder, index):
            raise InputError(f"{folder / name}: not in {INDEX_NAME}; remove it, or pack or merge again")
        shards = cls(folder, index)
        return shards._of_sources(sources) if sources else shards

    def __len__(self) -> int:
        return len(self._keys if self._chosen is None else self._chosen)

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the tars; a later read opens them again."""
        with self._lock:
            _close(self._fds)

    def key(self, i: int) -> str:
        """Key of clip `i` (0 <= i < len), known without reading; raises `IndexError`."""
        return self._keys[self._row(i)].decode()

    def clip(self, i: int) -> Clip:
        """What is known of clip `i` (0 <= i < len), read from its json member.

        Raises `IndexError`, or `DamagedMember` naming shard and key.
        """
        data = self._member(i, flac=False)
        try:
            record = json.loads(data)
            captions, synthetic = tuple(record["text"]), tuple(record["synthetic_text"])
            samples, source, crc32 = record["samples"], record["source"], record["flac_crc32"]
            "".join((*captions, *synthetic, source)).encode()
            if not (isinstance(samples, int) and samples > 0 and record["sample_rate"] == SAMPLE_RATE):
                raise ValueError(samples)
            if not isinstance(crc32, int):
                raise TypeError(crc32)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._damaged(i, "json", "not the record of a 16 kHz clip")
        return Clip(i, self.key(i), samples, samples / SAMPLE_RATE, captions, synthetic, source, crc32)

    def flac(self, clip: Clip) -> bytes:
        """The clip's FLAC member, which holds what was packed: its CRC-32 is compared.

        Without that, what counts as damaged would depend on the crop and on the decoder: libsndfile sees damage only
        where it decodes, and DALI misses it in the last frame. Raises `DamagedMember` naming shard and key.
        """
        data = self._member(clip.index, flac=True, source=clip.source)
        if zlib.crc32(data) != clip.flac_crc32:
            self._damaged(clip.index, "flac", "its bytes are not those that were packed", clip.source)
        return data

    def decode(self, clip: Clip, flac: bytes, start: int, frames: int) -> np.ndarray[Any, np.dtype[np.int16]]:
        """Samples `start` to `start + frames` of the clip's FLAC bytes, int16 `[frames]`; decodes no more than that.

        Raises `DamagedMember` naming shard and key.
        """
        try:
            return decode_flac_int16(flac, start, frames)
        except AudioError as error:
            self._damaged(clip.index, "flac", error.reason, clip.source)

    def read(self, i: int, start: int = 0, frames: int = -1) -> np.ndarray[Any, np.dtype[np.int16]]:
        """Samples `start` to `start + frames` (-1: to the end) of clip `i` at 16 kHz, int16 `[frames]`.

        Raises `IndexError`, or `DamagedMember` naming shard and key, also when the clip is shorter than that.
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

    def _of_sources(self, sources: Sequence[str]) -> "Shards":
        wanted, chosen, samples, captioned = frozenset(sources), list[int](), 0, 0
        found: Counter[str] = Counter()
        for i in range(len(self)):
            try:
                clip = self.clip(i)
            except DamagedMember as error:
                _log.warning("%s: left out, for its source is not known; pack again", error.what)
                continue
            source = source_of(clip.source)
            found[source] += 1
            if source in wanted:
                chosen.append(i)
                samples += clip.samples
                captioned += bool(clip.captions or clip.synthetic_captions)
        absent = sorted(wanted - set(found))
        if absent:
            self.close()
            named = [f"{printable(name)} ({count})" for name, count in found.most_common(_SOURCES_NAMED)]
            more = ", …" if len(found) > len(named) else ""
            raise InputError(
                f"{self.path}: no clip is from source {', '.join(map(printable, absent))}; expected some of "
                f"{', '.join(named)}{more}: a source is the first folder of the packed path (data.sources)"
            )
        part = copy.copy(self)
        part._fds, part._lock = OrderedDict(), threading.Lock()
        weakref.finalize(part, _close, part._fds)
        part._chosen = np.array(chosen, np.int64)
        part.seconds = samples / SAMPLE_RATE
        part.has_captions = captioned == len(chosen)
        names = json.dumps([self.fingerprint, *sorted(wanted)])
        part.fingerprint = hashlib.sha256(names.encode()).hexdigest()
        return part

    def _member(self, i: int, *, flac: bool, source: str = "") -> bytes:
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of {len(self)}")
        row, shard = self._row(i), self._shard_of(i)
        offset, size = map(int, self._spans[row, :2] if flac else self._spans[row, 2:])
        try:
            fd = self._descriptor(shard)
            try:
                header, data = os.pread(fd, BLOCK, offset - BLOCK), os.pread(fd, size, offset)
            finally:
                os.close(fd)
        except OSError as error:
            raise InputError(f"{self._tars[shard]}: {error.strerror}; pack again") from error
        extension = "flac" if flac else "json"
        if len(data) != size:
            self._damaged(i, extension, f"{len(data)} of {size} bytes are there", source)
        if not is_header(header, self._keys[row] + b"." + extension.encode(), size):
            self._damaged(i, extension, "the tar has another member there than the idx says", source)
        return data

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
        return int(np.searchsorted(self._first_clip, self._row(i), side="right")) - 1

    def _row(self, i: int) -> int:
        """Where clip `i` stands among all of the directory."""
        return i if self._chosen is None else int(self._chosen[i])

    def _damaged(self, i: int, extension: str, reason: str, source: str = "") -> NoReturn:
        raise DamagedMember(self._tars[self._shard_of(i)], f"{self.key(i)}.{extension}", reason, i, source)


def _close(descriptors: OrderedDict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
