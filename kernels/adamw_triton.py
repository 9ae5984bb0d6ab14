"""Kernels of :mod:`.adamw`, their launcher and op: what to do is decided once, then done everywhere."""

import torch
from torch import Tensor

from .flat_buffers import ROWS, SEGMENT, buffer_or_none, emit_kernel
from .library import define
from .triton_runtime import cdiv, jit, launch, tl

COUNTS = 4
"""Numbers an update counts on the device: steps begun, applied, skipped, and skipped in a row."""
SCHEDULE_COLUMNS = 3
"""Of a step: its learning rate, and after so many applied ones 1 - beta1ⁿ and sqrt(1 - beta2ⁿ)."""

_DECISIONS = 5


@jit(do_not_specialize=["steps"])
def adamw_decide_kernel(
    norm,  # float32 []
    ascent_norm,  # float32 [] or None
    counts,  # int64 [COUNTS]
    schedule,  # float32 [steps, COLUMNS]
    decisions,  # float32 [5]: whether to step, learning rate, 1 - beta1ⁿ, sqrt(1 - beta2ⁿ), factor of the gradient
    steps,
    clip_norm,
    COLUMNS: tl.constexpr,
):
    """Decide once what every program of the update needs to know, and count."""
    length = tl.load(norm)
    finite = (length >= 0.0) & (length < float("inf"))
    if ascent_norm is not None:
        ascent = tl.load(ascent_norm)
        finite = finite & (ascent >= 0.0) & (ascent < float("inf"))
    step, applied = tl.load(counts), tl.load(counts + 1)
    skipped, in_a_row = tl.load(counts + 2), tl.load(counts + 3)
    by_step = schedule + tl.minimum(step, steps - 1) * COLUMNS
    by_applied = schedule + tl.minimum(applied, steps - 1) * COLUMNS
    clip = tl.where(clip_norm > 0.0, tl.div_rn(clip_norm, tl.maximum(length, clip_norm)), 1.0)
    tl.store(decisions, tl.where(finite, 1.0, 0.0))
    tl.store(decisions + 1, tl.load(by_step))
    tl.store(decisions + 2, tl.load(by_applied + 1))
    tl.store(decisions + 3, tl.load(by_applied + 2))
    tl.store(decisions + 4, clip)
    tl.store(counts, step + 1)
    tl.store(counts + 1, tl.where(finite, applied + 1, applied))
    tl.store(counts + 2, tl.where(finite, skipped, skipped + 1))
    tl.store(counts + 3, tl.where(finite, 0, in_a_row + 1))


@jit(do_not_specialize=["segments", "narrow_segments"])
def adamw_kernel(
    master,  # float32 [segments, BLOCK]
    first,  # float32 [segments, BLOCK]: exp_avg
    second,  # float32 [segments, BLOCK]: exp_avg_sq
    gradient,  # float32 [segments, BLOCK]
    narrow,  # [narrow_segments, BLOCK] or None
    wide,  # float32, the rest, or None
    groups,  # uint8 [segments]
    table,  # float32 [groups, 2]: weight decay, factor of the learning rate
    decisions,  # float32 [5]
    segments,
    narrow_segments,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update master and moments where the step is to be made; in any case emit the copy and zero the gradient."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    in_buffer = row < segments
    place = row.to(tl.int64)[:, None] * BLOCK + column[None, :]
    mask = in_buffer[:, None] & (column < BLOCK)[None, :]
    weight = tl.load(master + place, mask, other=0.0)
    if tl.load(decisions) != 0.0:
        group = tl.load(groups + row, in_buffer, other=0).to(tl.int32)
        rate = tl.load(decisions + 1) * tl.load(table + group * 2 + 1)
        shrink = 1.0 - rate * tl.load(table + group * 2)
        step_size = tl.div_rn(rate, tl.load(decisions + 2))
        root = tl.load(decisions + 3)
        slope = tl.load(gradient + place, mask, other=0.0) * tl.load(decisions + 4)
        mean = tl.load(first + place, mask, other=0.0)
        mean += one_minus_beta1 * (slope - mean)
        square = tl.load(second + place, mask, other=0.0) * beta2 + one_minus_beta2 * slope * slope
        tl.store(first + place, mean, mask)
        tl.store(second + place, square, mask)
        scale = tl.div_rn(tl.sqrt_rn(square), root) + eps
        weight = weight * shrink[:, None] - step_size[:, None] * tl.div_rn(mean, scale)
        tl.store(master + place, weight, mask)
    emit_kernel(weight, narrow, wide, row, column, segments, narrow_segments, BLOCK)
    tl.store(gradient + place, tl.zeros_like(weight), mask)


def adamw_(
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    narrow: Tensor,
    wide: Tensor,
    groups: Tensor,
    table: Tensor,
    norm: Tensor,
    ascent_norm: Tensor | None,
    counts: Tensor,
    schedule: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    clip_norm: float,
) -> None:
    """Launch the decision, then the update of flat buffers whose lengths are multiples of SEGMENT."""
    decisions = torch.empty(_DECISIONS, dtype=torch.float32, device=master.device)
    launch(
        adamw_decide_kernel,
        (1,),
        *(norm, ascent_norm, counts, schedule, decisions, len(schedule), clip_norm),
        COLUMNS=SCHEDULE_COLUMNS,
        num_warps=1,
    )
    segments, narrow_segments = master.numel() // SEGMENT, narrow.numel() // SEGMENT
    launch(
        adamw_kernel,
        (cdiv(segments, ROWS),),
        *(
            master,
            exp_avg,
            exp_avg_sq,
            gradient,
            buffer_or_none(narrow),
            buffer_or_none(wide),
            groups,
            table,
            decisions,
        ),
        *(segments, narrow_segments, 1.0 - beta1, beta2, 1.0 - beta2, eps),
        ROWS=ROWS,
        BLOCK=SEGMENT,
    )


def _nothing(*arguments: object) -> None:
    return None


adamw_op = define(
    "adamw_(Tensor(a!) master, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) gradient, Tensor(e!) narrow, "
    "Tensor(f!) wide, Tensor groups, Tensor table, Tensor norm, Tensor? ascent_norm, Tensor(g!) counts, "
    "Tensor schedule, float beta1, float beta2, float eps, float clip_norm) -> ()",
    adamw_,
    _nothing,
)
