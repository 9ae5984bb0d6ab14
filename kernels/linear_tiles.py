"""Tiles of the kernels of :mod:`.linear_triton`: a table by GPU and shape of the layer; no search when they run.

The figures come from arithmetic and from what compiles without spilled registers; no GPU has chosen among them yet.
Where the sum is short (K = 768), writing a tile takes about as long as multiplying it, so two programs share a
multiprocessor and one writes while the other multiplies; where it is long, the largest tile reads the least.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .triton_runtime import compute_capability

Pass = Literal["fwd", "dgrad"]
DeviceClass = Literal["sm_80", "sm_90", "other"]
"""A100; H100 and H200; any other GPU, and Triton's interpreter."""
ShapeClass = Literal["wide", "square", "deep"]
"""Of a product ``[rows, K]`` by ``[K, N]``: N ≥ 2 K, in between, or K ≥ 2 N."""


@dataclass(frozen=True)
class Tile:
    """What a program computes at a time, and how."""

    rows: int
    columns: int
    depth: int
    """Terms of each sum in a slice of the operands."""
    warps: int
    stages: int
    """Slices in flight."""
    parts: int
    """Groups of columns, 1, 2 or 4, that go through the epilogue one after the other."""
    programs: int = 0
    """Of a multiprocessor, each of which takes every n-th tile; 0 for a program a tile."""
    descriptors: bool = False
    """Whether operands come through tensor descriptors."""


_SMALL = Tile(64, 64, 32, warps=4, stages=3, parts=2)  # fits every GPU, any shape and float32
_SHORT_80 = Tile(128, 128, 32, warps=4, stages=4, parts=4)
_LONG_80 = Tile(128, 256, 64, warps=8, stages=3, parts=4)
_SHORT_90 = Tile(128, 128, 64, warps=4, stages=3, parts=4, programs=2, descriptors=True)
_LONG_90 = Tile(128, 256, 64, warps=8, stages=4, parts=4, programs=1, descriptors=True)

TILES: dict[tuple[DeviceClass, Pass], dict[ShapeClass, Tile]] = {
    ("sm_80", "fwd"): {"wide": _SHORT_80, "square": _SHORT_80, "deep": _LONG_80},
    ("sm_80", "dgrad"): {"wide": _SHORT_80, "square": _SHORT_80, "deep": _LONG_80},
    ("sm_90", "fwd"): {"wide": _SHORT_90, "square": _SHORT_90, "deep": _LONG_90},
    ("sm_90", "dgrad"): {"wide": _SHORT_90, "square": _SHORT_90, "deep": _LONG_90},
    ("other", "fwd"): {"wide": _SMALL, "square": _SMALL, "deep": _SMALL},
    ("other", "dgrad"): {"wide": _SMALL, "square": _SMALL, "deep": _SMALL},
}


def device_class(device: torch.device) -> DeviceClass:
    """Return under what the tables have ``device``."""
    major, minor = compute_capability(device)
    if major == 9:
        return "sm_90"
    return "sm_80" if (major, minor) == (8, 0) else "other"


def shape_class(inside: int, width: int) -> ShapeClass:
    """Return under what the tables have sums of ``inside`` terms in ``width`` columns."""
    if width >= 2 * inside:
        return "wide"
    return "deep" if inside >= 2 * width else "square"


def linear_tile(pass_: Pass, x: Tensor, weight: Tensor) -> Tile:
    """Return the tile for ``x`` ``[rows, K]`` times ``weight``: ``[N, K]`` in a ``fwd``, ``[K, N]`` in a ``dgrad``.

    Where memory or rows do not start at multiples of 16 bytes there can be no descriptors, and tiles are small.
    """
    if x.element_size() > 2:
        return _SMALL
    inside, width = x.shape[1], weight.shape[0 if pass_ == "fwd" else 1]
    tile = TILES[device_class(x.device), pass_][shape_class(inside, width)]
    if tile.descriptors and not all(_has_descriptor(operand) for operand in (x, weight)):
        return _SMALL
    return tile


def _has_descriptor(operand: Tensor) -> bool:
    return operand.data_ptr() % 16 == 0 and operand.shape[1] * operand.element_size() % 16 == 0
