"""Memory of this process on the host that nobody uses any more goes back to the system."""

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Give the system what the C library keeps of freed memory; takes milliseconds. Without glibc nothing is done.

    Batches and captions have all sizes, and threads come and go with their heaps: what glibc keeps in the gaps, free
    but resident, grows for hours.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: 0
