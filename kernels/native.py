"""The libraries built from ``csrc``, one for CPUs and one for GPUs: found and loaded when first asked for, or why not.

Their plain C interface is ``csrc/native.h``; they are loaded without a GPU. Where one cannot be used, an op has no
fused implementation and says the reason (``cacophony doctor``).
"""

import ctypes
import functools
from pathlib import Path
from typing import Literal

import torch

from ..native_library import NativeLibrary, find_library, load_version, not_built

ABI_VERSION = 2
"""Of ``csrc/native.h``."""

_NEEDS: dict[Literal["cpu", "cuda"], str] = {"cpu": "a C++ compiler (GCC or Clang)", "cuda": "nvcc"}
_pointer, _integer, _long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


@functools.cache
def native_library(device_type: Literal["cpu", "cuda"]) -> NativeLibrary:
    """Find and load the library for ``"cpu"`` or ``"cuda"``."""
    if device_type == "cuda" and torch.version.cuda is None:
        return NativeLibrary(None, "this build of torch knows no CUDA")
    path = library_path(device_type)
    return not_built(_NEEDS[device_type]) if path is None else load_library(device_type, path)


def native_devices() -> list[Literal["cpu", "cuda"]]:
    """Return the types of device there is a library for."""
    return [device for device in _NEEDS if native_library(device).handle is not None]


def why_not() -> dict[str, str]:
    """Return the types of device there is no library for, each with the reason."""
    return {device: native_library(device).about for device in _NEEDS if native_library(device).handle is None}


def library_path(device_type: Literal["cpu", "cuda"]) -> Path | None:
    """Return where the library is; None where it was not built."""
    return find_library(__name__.rpartition(".")[0], f"_native_{device_type}")


def load_library(device_type: Literal["cpu", "cuda"], path: Path) -> NativeLibrary:
    """Load the library for ``device_type`` at ``path`` and check that it is of this package and can run here."""
    library = load_version(path, f"cacophony_{device_type}_abi", ABI_VERSION)
    if library.handle is None:
        return library
    return _cuda(library.handle) if device_type == "cuda" else _cpu(library.handle)


def _cpu(handle: ctypes.CDLL) -> NativeLibrary:
    handle.cacophony_cpu_instructions.restype = ctypes.c_char_p
    handle.cacophony_log_mel_cpu.argtypes = [_pointer, _integer, _pointer, _pointer, _long, _integer, _pointer]
    handle.cacophony_log_mel_cpu.restype = None
    handle.cacophony_log_mel_patches_cpu.argtypes = [
        *(_pointer, _integer, _pointer, _pointer, _long, _pointer, _long, _integer, _pointer),
    ]
    handle.cacophony_log_mel_patches_cpu.restype = None
    return NativeLibrary(handle, f"instruction set {handle.cacophony_cpu_instructions().decode()}")


def _cuda(handle: ctypes.CDLL) -> NativeLibrary:
    runtime, driver = ctypes.c_int(), ctypes.c_int()
    handle.cacophony_cuda_versions(ctypes.byref(runtime), ctypes.byref(driver))
    if 0 < driver.value // 1000 < runtime.value // 1000:
        built, known = (f"{version.value // 1000}.{version.value % 1000 // 10}" for version in (runtime, driver))
        return NativeLibrary(
            None, f"its library was built with CUDA {built}, the driver knows {known}; update it, or build with that"
        )
    handle.cacophony_cuda_error.argtypes, handle.cacophony_cuda_error.restype = [_integer], ctypes.c_char_p
    handle.cacophony_log_mel_cuda.argtypes = [
        *(_pointer, _integer, _pointer, _pointer, _long, _long),
        *(_pointer, _integer, _pointer),
    ]
    handle.cacophony_log_mel_patches_cuda.argtypes = [
        *(_pointer, _integer, _pointer, _pointer, _long, _long),
        *(_pointer, _long, _pointer, _integer, _pointer),
    ]
    return NativeLibrary(handle, f"CUDA {runtime.value // 1000}.{runtime.value % 1000 // 10}")
