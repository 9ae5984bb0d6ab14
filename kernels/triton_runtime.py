"""Triton where it is installed, and the one way its kernels are launched.

Triton is optional: kernels are defined with ``jit`` and ``tl`` from here, which without Triton let a file be imported
and never run. Triton reads ``TRITON_INTERPRET`` when a kernel is defined: it has to be set before this package is
imported.
"""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETING = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"

if TYPE_CHECKING or HAS_TRITON:
    import triton.language as tl
    from triton import jit
else:
    tl = SimpleNamespace(constexpr=lambda value: value)  # what signatures and constants of kernels name

    def jit(function=None, **_options):
        """Leave a kernel as it is: nothing can launch it."""
        return function or (lambda kernel: kernel)


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its grid, its positional arguments, and its constexprs and options by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...] = field(repr=False)
    options: dict[str, Any]


_recorded: list[Launch] | None = None
_architecture = 90


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run ``kernel`` on ``grid`` programs on the device of its tensors; nothing where the grid is empty or on ``meta``.

    ``options`` are the kernel's constexprs, ``num_warps`` and ``num_stages``. Multiply and add are fused unless
    ``enable_fp_fusion=False``: Triton's default changes in 3.10, so it is never left to it.
    """
    options.setdefault("enable_fp_fusion", True)
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, options))
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    if device.type == "meta" or 0 in grid:
        return
    with _ready(device):
        kernel[grid](*arguments, **options)


@contextlib.contextmanager
def record_launches(architecture: int = 90) -> Iterator[list[Launch]]:
    """Collect the launches of the body.

    On ``meta`` tensors the launchers of the ops run instead of their fakes (:mod:`.library`): what would be launched at
    any shape on a GPU of ``architecture`` (90 is sm_90) is known without it, and that nothing is read back from the
    device is shown.
    """
    global _recorded, _architecture
    before, _recorded, _architecture = (_recorded, _architecture), [], architecture
    try:
        yield _recorded
    finally:
        _recorded, _architecture = before


def recording() -> bool:
    """Whether the body of :func:`record_launches` runs."""
    return _recorded is not None


def tensor_descriptor(tensor: Tensor, block: tuple[int, int]) -> Any:
    """Describe contiguous ``tensor`` ``[rows, columns]`` to a kernel that loads ``block`` at a time, zeros beyond it.

    Its memory starts at a multiple of 16 bytes, and so does every row.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    rows, columns = tensor.shape
    return TensorDescriptor(tensor, [rows, columns], [columns, 1], list(block))  # a single row may have any stride


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of ``device``: an H100's on ``meta``; one in the interpreter, so that persistent loops loop."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132 if device.type == "meta" else 1


def compute_capability(device: torch.device) -> tuple[int, int]:
    """Return that of a GPU; on ``meta`` that of :func:`record_launches`, an H100's without; elsewhere (0, 0)."""
    return divmod(_architecture, 10) if device.type == "meta" else _capability(device)


def cdiv(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n`` (and 1)."""
    return 1 << max(n - 1, 0).bit_length()


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _ready(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type != "cuda":
        return np.errstate(all="ignore")  # the interpreter computes with NumPy, and a GPU does not warn
    if device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
