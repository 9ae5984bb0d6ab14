"""Libraries that the build puts beside a package's files: found and loaded, or the reason why not.

They have a plain C interface, so that they are built without Python and torch. A library that is missing, that does not
load or that is of another version is never used, and whoever would have used it says the reason.
"""

import ctypes
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class NativeLibrary:
    """A library; ``handle`` is None where there is none, ``about`` says why, or what it is."""

    handle: ctypes.CDLL | None = field(repr=False)
    about: str

    @property
    def functions(self) -> ctypes.CDLL:
        """The library's functions; raises RuntimeError where there is none."""
        if self.handle is None:
            raise RuntimeError(f"no native library: {self.about}")
        return self.handle


def find_library(package: str, name: str) -> Path | None:
    """Return where the library ``name`` of an imported package is; None where it was not built.

    That is beside the package's files, which in an editable installation lie in two places.
    """
    files = [Path(place, f"{name}.abi3.so") for place in sys.modules[package].__path__]
    return next((file for file in files if file.is_file()), None)


def not_built(needed: str) -> NativeLibrary:
    """Return what stands for a library that was not built because ``needed`` was missing."""
    return NativeLibrary(None, f"its library was not built; install {needed} and then this package again")


def load_version(path: Path, version_function: str, expected: int) -> NativeLibrary:
    """Load a library whose ``version_function`` returns the ``expected`` version of its interface."""
    try:
        handle = ctypes.CDLL(str(path))
        version = getattr(handle, version_function)()
    except (OSError, AttributeError) as error:
        return NativeLibrary(None, f"its library does not load ({' '.join(str(error).split())})")
    if version != expected:
        return NativeLibrary(
            None, f"its library is of version {version}, expected {expected} ({path}); install this package again"
        )
    return NativeLibrary(handle, "")
