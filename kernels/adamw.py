"""AdamW over flat buffers, whatever it needs to know already on the device: rates, counts, whether to step at all."""

from typing import Any

import torch
from torch import Tensor

from . import backend
from .adamw_triton import COUNTS, SCHEDULE_COLUMNS, adamw_op
from .checks import check_device, check_dtype, check_shape
from .flat_buffers import (
    PAPER_NARROW_SEGMENTS,
    PAPER_SEGMENTS,
    SEGMENT,
    check_buffers,
    draw_flat,
    write_copy,
)
from .spec import Case, Inputs, MakeInputs, Spec, Work

STEPS, APPLIED, SKIPPED, SKIPPED_IN_A_ROW = range(COUNTS)
"""Places in ``counts``: steps begun, steps applied, steps skipped, and those skipped since the last one applied."""


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
    *,
    beta1: float,
    beta2: float,
    eps: float,
    clip_norm: float = 0.0,
) -> None:
    """Make a step of AdamW (Loshchilov & Hutter, 2019), write the copy anew and zero the gradient, all in place.

    With rate = ``schedule[counts[STEPS], 0]`` · ``table[group, 1]``, decay = ``table[group, 0]``, g the gradient:
    m ← m + (1 - beta1) · (g - m), v ← beta2 · v + (1 - beta2) · g²,
    w ← w · (1 - rate · decay) - rate · m / (1 - beta1ⁿ) / (sqrt(v) / sqrt(1 - beta2ⁿ) + eps), n the steps applied.

    A step whose ``norm`` or ``ascent_norm`` (that of SAM's first gradient, None without) is not finite leaves master
    and moments as they are. ``counts`` int64 ``[COUNTS]`` says which step it is and counts it as applied or skipped.

    Args:
        master: float32 ``[N]``, N a multiple of ``SEGMENT``, as ``exp_avg`` (m), ``exp_avg_sq`` (v) and ``gradient``.
        exp_avg: m.
        exp_avg_sq: v.
        gradient: g; zero afterwards.
        narrow: ``[n]``, the copy of the first n elements.
        wide: ``[N - n]``, the copy of the rest.
        groups: uint8 ``[N / SEGMENT]``, the parameter group of each segment.
        table: ``[G, 2]``: weight decay and factor of the learning rate of each group.
        norm: 0-d, the norm of ``gradient``.
        ascent_norm: 0-d, or None.
        counts: places ``STEPS``, ``APPLIED``, ``SKIPPED`` and ``SKIPPED_IN_A_ROW``.
        schedule: ``[steps, 3]``, row s: the learning rate of step s, 1 - beta1ⁿ and sqrt(1 - beta2ⁿ) for n = s + 1;
            past the end the last row holds.
        beta1: decay of m.
        beta2: decay of v.
        eps: added to the root.
        clip_norm: a gradient of larger norm is scaled to it; 0 scales none.

    Raises ValueError on shapes, dtypes or devices that do not fit.
    """
    op = "adamw"
    check_buffers(op, master, narrow, wide, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, gradient=gradient)
    check_shape(op, "groups", groups, (master.numel() // SEGMENT,))
    check_dtype(op, "groups", groups, (torch.uint8,))
    check_shape(op, "table", table, (len(table), 2))
    check_dtype(op, "table", table, (master.dtype,))
    check_shape(op, "norm", norm, ())
    check_shape(op, "counts", counts, (COUNTS,))
    check_dtype(op, "counts", counts, (torch.int64,))
    check_shape(op, "schedule", schedule, (max(len(schedule), 1), SCHEDULE_COLUMNS))
    check_dtype(op, "schedule", schedule, (master.dtype,))
    check_device(op, "master", master.device, groups=groups, table=table, norm=norm, counts=counts, schedule=schedule)
    if ascent_norm is not None:
        check_shape(op, "ascent_norm", ascent_norm, ())
        check_device(op, "master", master.device, ascent_norm=ascent_norm)
    _dispatch_adamw(
        *(master, exp_avg, exp_avg_sq, gradient, narrow, wide, groups, table, norm, ascent_norm, counts, schedule),
        *(beta1, beta2, eps, clip_norm),
    )


def adamw_reference(
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
    """Compute :func:`adamw_` in plain PyTorch."""
    finite = norm.isfinite() if ascent_norm is None else norm.isfinite() & ascent_norm.isfinite()
    rows = schedule.index_select(0, counts[:SKIPPED].clamp_max(len(schedule) - 1))
    rate, (_, correction1, root2) = rows[STEPS, 0], rows[APPLIED].unbind()
    decay, factor = table.index_select(0, groups.int()).unsqueeze(1).unbind(-1)  # [segments, 1] each
    clip = clip_norm / norm.clamp_min(clip_norm) if clip_norm > 0 else torch.ones_like(norm)

    g = torch.where(finite, gradient * clip.to(gradient.dtype), 0.0)
    m = exp_avg + (1 - beta1) * (g - exp_avg)
    v = beta2 * exp_avg_sq + (1 - beta2) * g * g
    ascended = (m / (v.sqrt() / root2 + eps)).view(-1, SEGMENT)
    w = master.view(-1, SEGMENT) * (1 - rate * factor * decay) - (rate * factor / correction1) * ascended
    for old, new in ((exp_avg, m), (exp_avg_sq, v), (master, w.flatten())):
        old.copy_(torch.where(finite, new, old))
    write_copy(master, narrow, wide)
    gradient.zero_()
    one = torch.ones_like(counts[STEPS])
    applied, skipped = counts[APPLIED] + finite, counts[SKIPPED] + ~finite
    in_a_row = torch.where(finite, 0, counts[SKIPPED_IN_A_ROW] + 1)
    counts.copy_(torch.stack((counts[STEPS] + one, applied, skipped, in_a_row)))


def _adamw_cuda(master: Tensor, *rest: Any) -> None:
    check_dtype("adamw", "master", master, (torch.float32,))
    adamw_op(master, *rest)


_dispatch_adamw = backend.register("adamw", reference=adamw_reference, fused={"cuda": _adamw_cuda})


_CHANGED = ("master", "exp_avg", "exp_avg_sq", "gradient", "narrow", "wide", "counts")


def updated_buffers(**inputs: Any) -> dict[str, Tensor]:
    """Call :func:`adamw_` and return what it changed."""
    adamw_(**inputs)
    return {name: inputs[name] for name in _CHANGED}


def _updated_buffers_reference(**inputs: Any) -> dict[str, Tensor]:
    adamw_reference(**inputs)
    return {name: inputs[name] for name in _CHANGED}


def _torch_fused(**inputs: Any) -> dict[str, Tensor]:
    """PyTorch's fused AdamW on about 300 tensors of one group, then the cast and the zeroing it leaves to others."""
    counts, schedule = inputs["counts"], inputs["schedule"]
    tensors = [
        list(inputs[name].split(max(inputs["master"].numel() // 300, 1)))
        for name in ("master", "gradient", "exp_avg", "exp_avg_sq")
    ]
    torch.optim.adamw.adamw(
        *tensors,
        max_exp_avg_sqs=[],
        state_steps=[counts[APPLIED].float()] * len(tensors[0]),
        fused=True,
        amsgrad=False,
        beta1=inputs["beta1"],
        beta2=inputs["beta2"],
        lr=schedule.index_select(0, counts[:1])[0, 0],
        weight_decay=0.01,
        eps=inputs["eps"],
        maximize=False,
    )
    write_copy(inputs["master"], inputs["narrow"], inputs["wide"])
    inputs["gradient"].zero_()
    counts[: APPLIED + 1] += 1
    return {name: inputs[name] for name in _CHANGED}


def _weights(
    narrow: int,
    wide: int,
    *,
    groups: int = 1,
    scale: float = 1e-3,
    applied: int = 7,
    norm: float | None = None,
    ascent_norm: float | None = None,
    clip_norm: float = 0.0,
) -> MakeInputs:
    """So many segments of either part, in turns of each group; moments of a run that has made ``applied`` steps."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        elements = (narrow + wide) * SEGMENT
        gradient = draw_flat(elements, generator, device, scale)
        steps = torch.arange(1, 21, dtype=torch.float64)
        schedule = torch.stack((2e-4 * steps / 20, 1 - 0.9**steps, (1 - 0.999**steps).sqrt()), dim=1)
        return {
            "master": draw_flat(elements, generator, device, 0.03),
            "exp_avg": draw_flat(elements, generator, device, scale),
            "exp_avg_sq": draw_flat(elements, generator, device, scale).square(),
            "gradient": gradient,
            "narrow": torch.empty(narrow * SEGMENT, dtype=dtype, device=device),
            "wide": torch.empty(wide * SEGMENT, device=device),
            "groups": (torch.arange(narrow + wide) % groups).to(torch.uint8).to(device),
            "table": torch.tensor([[0.01, 1.0], [0.0, 0.5], [0.1, 0.0]][:groups], device=device),
            "norm": torch.linalg.vector_norm(gradient) if norm is None else torch.tensor(norm, device=device),
            "ascent_norm": None if ascent_norm is None else torch.tensor(ascent_norm, device=device),
            "counts": torch.tensor([applied + 2, applied, 2, 1]).to(device),
            "schedule": schedule.float().to(device),
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "clip_norm": clip_norm,
        }

    return make


def _work(inputs: Inputs) -> Work:
    """Weights, moments and gradient are read and written, the copy is written."""
    both = sum(2 * inputs[name].nbytes for name in ("master", "exp_avg", "exp_avg_sq", "gradient"))
    return Work(bytes=both + inputs["narrow"].nbytes + inputs["wide"].nbytes, flops=15 * inputs["master"].numel())


SPEC = Spec(
    name="adamw",
    op=updated_buffers,
    reference=_updated_buffers_reference,
    cases=(
        Case("three groups", _weights(3, 2, groups=3, ascent_norm=1.0)),
        Case("first step", _weights(1, 70, applied=0)),
        Case("narrow alone", _weights(2, 0)),
        Case("clipped", _weights(1, 1, clip_norm=0.01)),
        Case("within the clip", _weights(1, 1, clip_norm=10.0)),
        Case("no gradient", _weights(1, 1, scale=0.0)),
        Case("norm not a number", _weights(1, 1, norm=float("nan"))),
        Case("ascent norm infinite", _weights(1, 1, ascent_norm=float("inf"))),
        Case("past the schedule", _weights(1, 1, applied=30)),
        Case("stage 2", _weights(PAPER_NARROW_SEGMENTS, PAPER_SEGMENTS - PAPER_NARROW_SEGMENTS), paper=True),
    ),
    forward=_work,
    rivals={"torch_fused": _torch_fused},
)
