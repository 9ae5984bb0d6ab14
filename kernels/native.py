"""The libraries built from ``csrc``, one for CPUs and one for GPUs: found and loaded when first asked for, or why not.

They have a plain C interface (``csrc/native.h``), so that they are built without torch and loaded without a GPU. A
library that is missing, that does not load or that is of another version is never used; an op then has no fused
implementation there and says the reason (``cacophony doctor``).
"""

import ctypes
import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

ABI_VERSION = 2
"""Of ``csrc/native.h``."""

_NEEDS: dict[Literal["cpu", "cuda"], str] = {"cpu": "a C++ compiler (GCC or Clang)", "cuda": "nvcc"}
_pointer, _integer, _long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64


@dataclass(frozen=True)
class NativeLibrary:
    """The library for a type of device; ``handle`` is None where there is none, ``about`` says why, or what it is."""

    handle: ctypes.CDLL | None = field(repr=False)
    about: str

    @property
    def functions(self) -> ctypes.CDLL:
        """The library's functions; raises RuntimeError where there is none."""
        if self.handle is None:
            raise RuntimeError(f"no native library: {self.about}")
        return self.handle


@functools.cache
def native_library(device_type: Literal["cpu", "cuda"]) -> NativeLibrary:
    """Find and load the library for ``"cpu"`` or ``"cuda"``."""
    if device_type == "cuda" and torch.version.cuda is None:
        return NativeLibrary(None, "this build of torch knows no CUDA")
    path = library_path(device_type)
    if path is None:
        needed = _NEEDS[device_type]
        return NativeLibrary(None, f"its library was not built; install {needed} and then this package again")
    return load_library(device_type, path)


def native_devices() -> list[Literal["cpu", "cuda"]]:
    """Return the types of device there is a library for."""
    return [device for device in _NEEDS if native_library(device).handle is not None]


def why_not() -> dict[str, str]:
    """Return the types of device there is no library for, each with the reason."""
    return {device: native_library(device).about for device in _NEEDS if native_library(device).handle is None}


def library_path(device_type: Literal["cpu", "cuda"]) -> Path | None:
    """Return where the library is; None where it was not built.

    That is beside this package's files, which in an editable installation lie in two places.
    """
    places = sys.modules[__name__.rpartition(".")[0]].__path__
    files = [Path(place, f"_native_{device_type}.abi3.so") for place in places]
    return next((file for file in files if file.is_file()), None)


def load_library(device_type: Literal["cpu", "cuda"], path: Path) -> NativeLibrary:
    """Load the library for ``device_type`` at ``path`` and check that it is of this package and can run here."""
    try:
        handle = ctypes.CDLL(str(path))
        abi = getattr(handle, f"cacophony_{device_type}_abi")()
    except (OSError, AttributeError) as error:
        return NativeLibrary(None, f"its library does not load ({' '.join(str(error).split())})")
    if abi != ABI_VERSION:
        return NativeLibrary(
            None, f"its library is of version {abi}, expected {ABI_VERSION} ({path}); install this package again"
        )
    return _cuda(handle) if device_type == "cuda" else _cpu(handle)


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
