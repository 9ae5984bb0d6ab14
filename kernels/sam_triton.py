"""Kernels of :mod:`.sam`, their launchers and ops: gradient norm and perturbation over flat buffers."""

import torch
from torch import Tensor

from .flat_buffers import ROWS, SEGMENT, buffer_or_none, emit_kernel
from .library import define
from .triton_runtime import cdiv, jit, launch, processors, tl

_NORM_BLOCK = 8192


@jit
def gradient_norm_kernel(gradient, partials, elements, BLOCK: tl.constexpr):
    """Walk over every n-th block, n the number of programs, adding up squares: ``partials`` float32 ``[n]``."""
    lane = tl.arange(0, BLOCK).to(tl.int64)
    squares = tl.zeros((BLOCK,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(elements, BLOCK), tl.num_programs(0)):
        place = lane + tile * tl.full((1,), BLOCK, tl.int64)
        value = tl.load(gradient + place, place < elements, other=0.0).to(tl.float32)
        squares += value * value
    tl.store(partials + tl.program_id(0), tl.sum(squares, 0))


@jit(do_not_specialize=["programs"])
def norm_of_partials_kernel(partials, norm, programs, BLOCK: tl.constexpr):
    """Add ``partials`` in a fixed order and take the root: ``norm`` ``[]``."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, programs, BLOCK):
        total += tl.load(partials + first + lane, first + lane < programs, other=0.0)
    tl.store(norm, tl.sqrt_rn(tl.sum(total, 0)))


@jit(do_not_specialize=["segments", "narrow_segments"])
def sam_perturb_kernel(
    master,  # float32 [segments, BLOCK]
    direction,  # float32 [segments, BLOCK]
    norm,  # float32 []: that of direction
    narrow,  # [narrow_segments, BLOCK] or None
    wide,  # float32, the rest, or None
    segments,
    narrow_segments,
    rho,
    ZERO: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write master + rho · direction / norm, rounded; master itself where the norm is 0 or not finite."""
    length = tl.load(norm)
    usable = (length > 0.0) & (length < float("inf"))
    factor = tl.where(usable, tl.div_rn(rho, tl.where(usable, length, 1.0)), 0.0)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    place = row.to(tl.int64)[:, None] * BLOCK + column[None, :]
    mask = (row < segments)[:, None] & (column < BLOCK)[None, :]
    weight = tl.load(master + place, mask, other=0.0)
    along = tl.load(direction + place, mask, other=0.0)
    moved = weight + tl.where(usable, along * factor, 0.0)
    emit_kernel(moved, narrow, wide, row, column, segments, narrow_segments, BLOCK)
    if ZERO:
        tl.store(direction + place, tl.zeros_like(along), mask)


def gradient_norm(gradient: Tensor) -> Tensor:
    """Launch the two stages of the norm of a flat ``gradient``: ``[]`` float32."""
    norm = _norm(gradient)
    elements = gradient.numel()
    programs = min(cdiv(elements, _NORM_BLOCK), 4 * processors(gradient.device))
    partials = torch.empty(programs, dtype=torch.float32, device=gradient.device)
    launch(gradient_norm_kernel, (programs,), gradient, partials, elements, BLOCK=_NORM_BLOCK, num_warps=8)
    launch(norm_of_partials_kernel, (1,), partials, norm, programs, BLOCK=1024)
    return norm


def sam_perturb_(
    master: Tensor, direction: Tensor, norm: Tensor, narrow: Tensor, wide: Tensor, rho: float, zero_direction: bool
) -> None:
    """Launch the perturbation of flat buffers whose lengths are multiples of SEGMENT."""
    segments, narrow_segments = master.numel() // SEGMENT, narrow.numel() // SEGMENT
    launch(
        sam_perturb_kernel,
        (cdiv(segments, ROWS),),
        *(master, direction, norm, buffer_or_none(narrow), buffer_or_none(wide), segments, narrow_segments, rho),
        ZERO=zero_direction,
        ROWS=ROWS,
        BLOCK=SEGMENT,
    )


def _norm(gradient: Tensor) -> Tensor:
    return gradient.new_empty((), dtype=torch.float32)


def _nothing(*arguments: object) -> None:
    return None


gradient_norm_op = define("gradient_norm(Tensor gradient) -> Tensor", gradient_norm, _norm)
sam_perturb_op = define(
    "sam_perturb_(Tensor master, Tensor(a!) direction, Tensor norm, Tensor(b!) narrow, Tensor(c!) wide, float rho, "
    "bool zero_direction) -> ()",
    sam_perturb_,
    _nothing,
)
