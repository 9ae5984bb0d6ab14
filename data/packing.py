"""Gathering the clips of a batch into one buffer, without holding the interpreter's lock.

A loop of NumPy copies would give the lock away and ask for it again at every clip, and wait each time for the thread
that is launching kernels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from torch import Tensor


def allocate(lengths: Sequence[int], *, pin_memory: bool = False) -> tuple[Tensor, Tensor]:
    """A buffer for clips of these lengths, int16 `[S]`, not filled, and their offsets in it, int64 `[B+1]`.

    It lies in page-locked memory where `pin_memory`.
    """
    offsets = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64))
    return torch.empty(int(offsets[-1]), dtype=torch.int16, pin_memory=pin_memory), offsets


def copy_waves(waves: Sequence[np.ndarray], packed: np.ndarray, places: Sequence[int]) -> None:
    """Copy int16 waves `[n_b]` to `packed` (int16 `[S]`), each to its place in samples.

    Raises `ValueError` for arrays that are not contiguous int16 vectors and places where a wave does not fit.
    """
    if len(waves) != len(places):
        raise ValueError(f"{len(waves)} waves and {len(places)} places; expected equal counts")
    for wave in (packed, *waves):
        if wave.dtype != np.int16 or wave.ndim != 1 or not wave.flags.c_contiguous:
            raise ValueError(f"waves must be contiguous int16 vectors, got {wave.dtype} {list(wave.shape)}")
    for wave, place in zip(waves, places, strict=True):
        if not 0 <= place <= place + len(wave) <= len(packed):
            raise ValueError(f"a wave of {len(wave)} samples does not fit at {place} of {len(packed)}")
    addresses = np.array([wave.__array_interface__["data"][0] for wave in waves], np.uint64)
    _copy(addresses, np.array([len(wave) for wave in waves], np.int64), packed, np.array(places, np.int64))


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # nowhere to keep the compiled code: it is compiled again in each process
        return numba.njit(nogil=True)(function)


@intrinsic
def _samples_at(_: Any, address: Any) -> Any:
    """The address as a pointer to int16."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int16)(address), codegen


@_compiled
def _copy(addresses: np.ndarray, lengths: np.ndarray, packed: np.ndarray, places: np.ndarray) -> None:
    # One thread: the loader's threads are the parallelism, and numba's own would die in a forked child.
    for b in range(len(addresses)):
        wave = carray(_samples_at(addresses[b]), lengths[b])  # pyright: ignore[reportCallIssue]
        packed[places[b] : places[b] + lengths[b]] = wave
