"""The library built from ``csrc``: FLAC at a few times the rate of libsndfile, its samples bit for bit.

Which streams it takes is said by their first 42 bytes (``csrc/flac.h``): FLAC that begins with its STREAMINFO, 16 kHz,
one channel of 8 or 16 bits, a declared length. All others are soundfile's, and so is the last word on damage: what the
library refuses is not yet a damaged member. So no clip is lost because the library was built.
"""

import ctypes
import functools
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..native_library import NativeLibrary, find_library, load_version, not_built

ABI_VERSION = 1
"""Of ``csrc/flac.h``."""

MAX_STRETCH = 3_600 * 16_000
"""Samples that are decoded at once: a header may claim any length, and nothing is allocated for more than an hour."""

_bytes, _pointer, _long = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True, slots=True)
class Stretch:
    """Samples `start` to `start + frames` of a FLAC member that holds so many `samples`."""

    flac: bytes
    samples: int
    start: int
    frames: int


@functools.cache
def flac_library() -> NativeLibrary:
    """Find and load the library."""
    path = library_path()
    return not_built("a C++ compiler (GCC or Clang)") if path is None else load_library(path)


def library_path() -> Path | None:
    """Return where the library is; None where it was not built."""
    return find_library(__name__.rpartition(".")[0], "_native_flac")


def load_library(path: Path) -> NativeLibrary:
    """Load the library at ``path`` and check that it is of this package."""
    library = load_version(path, "cacophony_flac_abi", ABI_VERSION)
    handle = library.handle
    if handle is None:
        return library
    handle.cacophony_flac_instructions.restype = handle.cacophony_flac_problem.restype = ctypes.c_char_p
    handle.cacophony_flac_samples.argtypes, handle.cacophony_flac_samples.restype = [_bytes, _long], _long
    handle.cacophony_flac_decode.argtypes = [_bytes, _long, _long, _long, _pointer]
    handle.cacophony_flac_decode_many.argtypes = [
        *(_pointer, _pointer, _pointer, _pointer, _pointer),
        *(_long, _pointer, _pointer),
    ]
    handle.cacophony_flac_decode_many.restype = None
    return NativeLibrary(handle, f"instruction set {handle.cacophony_flac_instructions().decode()}")


def flac_decoder() -> str:
    """Say who decodes FLAC for the loader, and why."""
    library = flac_library()
    if library.handle is None:
        return f"FLAC decoder: soundfile (native: {library.about})"
    return f"FLAC decoder: native, {library.about}"


def is_within(start: int, stop: int, declared: int) -> bool:
    """Whether a stretch lies in the samples that a header declares, and is none too long to be allocated."""
    return 0 <= start <= stop <= declared and stop - start <= MAX_STRETCH


def native_samples(data: bytes) -> int:
    """The samples that a stream declares; -1 where it is none that the library takes, and where there is no library."""
    handle = flac_library().handle
    return -1 if handle is None else handle.cacophony_flac_samples(data, len(data))


def decode_native(data: bytes, start: int, frames: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Samples `start` to `start + frames` of a stream, int16 `[frames]`; decodes little more than that.

    Raises `ValueError` where the stream is none that the library takes, has no such samples or is damaged, and
    `RuntimeError` where there is no library.
    """
    functions = flac_library().functions
    wave = np.empty(frames, np.int16)
    status = functions.cacophony_flac_decode(data, len(data), start, frames, wave.ctypes.data)
    if status:
        raise ValueError(f"FLAC: {functions.cacophony_flac_problem(status).decode()}")
    return wave


def native_decoder(pool: Executor, threads: int) -> "NativeDecoder | None":
    """A decoder on so many `threads` of a pool; None where there is no library."""
    return None if flac_library().handle is None else NativeDecoder(pool, threads)


class NativeDecoder:
    """A :class:`.loader.BatchDecoder`: an equal share of a batch for each thread, in one call."""

    def __init__(self, pool: Executor, threads: int) -> None:
        self._pool, self._threads = pool, threads

    def accepts(self, stretch: Stretch) -> bool:
        """Whether the library takes the member and it declares these samples."""
        return is_within(stretch.start, stretch.start + stretch.frames, native_samples(stretch.flac))

    def decode(self, stretches: Sequence[Stretch], packed: np.ndarray, places: Sequence[int]) -> list[bool]:
        """Decode stretches to `packed` (int16 `[S]`), each to its place; False for one that the library refuses."""
        shares = [slice(first, None, self._threads) for first in range(min(self._threads, len(stretches)))]
        running = [self._pool.submit(_decode_many, stretches[share], packed, places[share]) for share in shares]
        right = [False] * len(stretches)
        for share, done in zip(shares, running, strict=True):
            right[share] = done.result()
        return right

    def close(self) -> None:
        """Nothing is held."""


def _decode_many(stretches: Sequence[Stretch], packed: np.ndarray, places: Sequence[int]) -> list[bool]:
    if packed.dtype != np.int16 or packed.ndim != 1 or not packed.flags.c_contiguous or not packed.flags.writeable:
        raise ValueError(f"a contiguous int16 vector to decode to is expected, got {packed.dtype} {list(packed.shape)}")
    for stretch, place in zip(stretches, places, strict=True):
        if not 0 <= place <= place + stretch.frames <= len(packed):
            raise ValueError(f"samples {place} to {place + stretch.frames} of {len(packed)} to decode to")
    count = len(stretches)
    numbers = [(len(s.flac), s.start, s.frames, place) for s, place in zip(stretches, places, strict=True)]
    columns, status = np.array(numbers, np.int64).reshape(count, 4).T.copy(), np.empty(count, np.int32)
    members = (ctypes.c_char_p * count)(*(stretch.flac for stretch in stretches))
    flac_library().functions.cacophony_flac_decode_many(
        members, *(column.ctypes.data for column in columns), count, packed.ctypes.data, status.ctypes.data
    )
    return (status == 0).tolist()
