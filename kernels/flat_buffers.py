"""Flat buffers that hold every parameter of a network, and the copy of them that the network computes with.

Each parameter is a run of elements in a ``master``, float32; gradient and moments lie likewise. The copy has two parts:
``narrow`` (bfloat16, say), of the first elements, and ``wide``, in the master's dtype, of the rest. What shares a
parameter group is a multiple of ``SEGMENT`` elements long, and so are the buffers.
"""

import torch
from torch import Tensor

from .checks import check_device, check_dtype, check_shape
from .triton_runtime import INTERPRETING, cdiv, jit, tl

SEGMENT = 1024
"""Elements that share a parameter group; every buffer's length is a multiple of it."""
ROWS = 64 if INTERPRETING else 1
"""Segments of a program; the interpreter takes as long for many as for one."""


@jit
def emit_kernel(copied, narrow, wide, row, column, segments, narrow_segments, BLOCK: tl.constexpr):
    """Store ``copied`` where the parameters are computed with: ``narrow`` first, the rest in ``wide``."""
    if narrow is not None:
        place = row.to(tl.int64)[:, None] * BLOCK + column[None, :]
        tl.store(narrow + place, copied.to(narrow.dtype.element_ty), (row < narrow_segments)[:, None])
    if wide is not None:
        place = (row - narrow_segments).to(tl.int64)[:, None] * BLOCK + column[None, :]
        in_wide = (row >= narrow_segments) & (row < segments)
        tl.store(wide + place, copied, in_wide[:, None])


def write_copy(values: Tensor, narrow: Tensor, wide: Tensor) -> None:
    """Write ``values`` ``[N]``, rounded, to the two parts of the copy."""
    narrow.copy_(values[: narrow.numel()])
    wide.copy_(values[narrow.numel() :])


def buffer_or_none(buffer: Tensor) -> Tensor | None:
    """Return None for a part of the copy that has no elements, which kernels leave out."""
    return buffer if buffer.numel() else None


def check_buffers(op: str, master: Tensor, narrow: Tensor, wide: Tensor, **others: Tensor) -> None:
    """Raise ValueError where the buffers do not fit each other; ``others`` are as long as the master."""
    for name, buffer in {"master": master, "narrow": narrow}.items():
        if buffer.dim() != 1 or buffer.numel() % SEGMENT:
            expected = f"one dimension, a multiple of {SEGMENT} long"
            raise ValueError(f"{op}: {name} has shape {list(buffer.shape)}, expected {expected}")
    check_shape(op, "wide", wide, (master.numel() - narrow.numel(),))
    check_dtype(op, "wide", wide, (master.dtype,))
    for name, buffer in others.items():
        check_shape(op, name, buffer, master.shape)
        check_dtype(op, name, buffer, (master.dtype,))
    check_device(op, "master", master.device, narrow=narrow, wide=wide, **others)


PAPER_SEGMENTS = 282_615
"""Segments of the paper's stage 2: 289 M parameters, each beginning with a segment."""
PAPER_NARROW_SEGMENTS = 244_396
"""Those of its linear layers."""


def draw_flat(elements: int, generator: torch.Generator, device: torch.device, scale: float) -> Tensor:
    """Draw a flat float32 buffer from N(0, scale²) for a case of a SPEC; it repeats with a long prime period."""
    if device.type == "meta":
        return torch.empty(elements, device=device)
    period = torch.randn(min(elements, 1_048_573), generator=generator) * scale
    return period.repeat(cdiv(elements, max(len(period), 1)))[:elements].to(device)
