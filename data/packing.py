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


def pack_waves(
    waves: Sequence[np.ndarray], starts: Sequence[int], lengths: Sequence[int], *, pin_memory: bool = False
) -> tuple[Tensor, Tensor]:
    """Copy `lengths[b]` samples from `starts[b]` on of each int16 wave `[n_b]` into one buffer.

    Returns the buffer, int16 `[S]`, in page-locked memory where `pin_memory`, and the offsets of the clips in it, int64
    `[B+1]`. Raises `ValueError` for waves that are not contiguous int16 vectors and stretches that lie outside them.
    """
    if not len(waves) == len(starts) == len(lengths):
        raise ValueError(f"{len(waves)} waves, {len(starts)} starts and {len(lengths)} lengths; expected equal counts")
    for wave, start, length in zip(waves, starts, lengths, strict=True):
        if wave.dtype != np.int16 or wave.ndim != 1 or not wave.flags.c_contiguous:
            raise ValueError(f"waves must be contiguous int16 vectors, got {wave.dtype} {list(wave.shape)}")
        if not 0 <= start <= start + length <= len(wave):
            raise ValueError(f"samples {start} to {start + length} asked of a wave of {len(wave)}")
    addresses = np.array([wave.__array_interface__["data"][0] for wave in waves], np.uint64)
    offsets = np.zeros(len(waves) + 1, np.int64)
    packed = torch.empty(sum(lengths), dtype=torch.int16, pin_memory=pin_memory)
    _gather(addresses, np.array(starts, np.int64), np.array(lengths, np.int64), packed.numpy(), offsets)
    return packed, torch.from_numpy(offsets)


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
def _gather(
    addresses: np.ndarray, starts: np.ndarray, lengths: np.ndarray, packed: np.ndarray, offsets: np.ndarray
) -> None:
    # One thread: the loader's threads are the parallelism, and numba's own would die in a forked child.
    at = 0
    for b in range(len(addresses)):
        start, length = starts[b], lengths[b]
        wave = carray(_samples_at(addresses[b]), start + length)  # pyright: ignore[reportCallIssue]
        packed[at : at + length] = wave[start:]
        at += length
        offsets[b + 1] = at
