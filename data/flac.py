"""The library built from ``csrc``: FLAC decoded at a few times the rate of libsndfile, its samples bit for bit.

Which streams are its own follows from their first 42 bytes: FLAC that begins with its STREAMINFO, one channel of 8 or 16
bits, a declared length. All others are soundfile's, and so is the last word on what is damaged: a stream that the
library refuses is none that a loader may drop for that. So what is loaded does not depend on whether it was built.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from ..native_library import NativeLibrary, find_library, load_version, not_built

ABI_VERSION = 1
"""Of ``csrc/flac.h``."""

_SAMPLE_BITS = (8, 16)
_bytes, _pointer, _long = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64


class FlacInfo(ctypes.Structure):
    """What STREAMINFO says; all zeros where a stream does not begin with it."""

    samples: int
    rate: int
    channels: int
    bits: int
    _fields_ = (("samples", _long), ("rate", ctypes.c_int32), ("channels", ctypes.c_int32), ("bits", ctypes.c_int32))

    @property
    def is_native(self) -> bool:
        """Whether it is a stream that the library decodes."""
        return self.channels == 1 and self.bits in _SAMPLE_BITS and self.samples > 0


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
    handle.cacophony_flac_info.argtypes = [_bytes, _long, ctypes.POINTER(FlacInfo)]
    handle.cacophony_flac_info.restype = None
    handle.cacophony_flac_decode.argtypes = [_bytes, _long, _long, _long, _pointer]
    return NativeLibrary(handle, f"instruction set {handle.cacophony_flac_instructions().decode()}")


def flac_decoder() -> str:
    """Say in a line who decodes FLAC, and why."""
    library = flac_library()
    if library.handle is None:
        return f"FLAC decoder: soundfile (libsndfile {sf.__libsndfile_version__}): {library.about}"
    return f"FLAC decoder: native, {library.about}"


def flac_info(data: bytes) -> FlacInfo:
    """Read a stream's header; raises RuntimeError where there is no library."""
    info = FlacInfo()
    flac_library().functions.cacophony_flac_info(data, len(data), ctypes.byref(info))
    return info


def decode_stretch(data: bytes, start: int, frames: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Samples `start` to `start + frames` of a native stream, int16 `[frames]`; decodes little more than that.

    Raises `ValueError` saying what is wrong with the stream, or that there are no such samples, and `RuntimeError` where
    there is no library.
    """
    functions = flac_library().functions
    wave = np.empty(frames, np.int16)
    status = functions.cacophony_flac_decode(data, len(data), start, frames, wave.ctypes.data)
    if status:
        raise ValueError(f"FLAC stream: {functions.cacophony_flac_problem(status).decode()}")
    return wave
