"""Activations of the feed-forward layers; their backward makes the value again in the same pass over memory."""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend
from .checks import check_device, check_dtype, check_shape
from .library import define
from .partial_sums import sum_partials
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal
from .triton_runtime import cdiv, jit, launch, processors, tl

Activation = Literal["silu", "gelu"]

BLOCK = 1024
"""Elements of a forward program: one 16-byte load of 16-bit numbers a thread and operand."""
BLOCK_ROWS, BLOCK_N = 8, 256
PROGRAMS_TOGETHER = 4
"""Backward programs of a multiprocessor, enough loads in flight to keep memory busy."""
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_RSQRT_TWO_PI = tl.constexpr(1.0 / math.sqrt(2.0 * math.pi))


@jit
def _gate(x, KIND: tl.constexpr):
    """What x is multiplied by: the logistic function of x, or the normal distribution's."""
    return 1.0 / (1.0 + tl.exp(-x)) if KIND == "silu" else 0.5 * (1.0 + tl.erf(x * _SQRT_HALF))


@jit
def gate_and_slope(x, KIND: tl.constexpr):
    """Return the gate, and the derivative of x · gate: gate + x · gate'."""
    gate = _gate(x, KIND)
    return gate, gate + x * (gate * (1.0 - gate) if KIND == "silu" else tl.exp(-0.5 * x * x) * _RSQRT_TWO_PI)


@jit
def activation_fwd_kernel(pre, out, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Write out = pre · gate(pre)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(pre + i, i < n, other=0.0).to(tl.float32)
    tl.store(out + i, (x * _gate(x, KIND)).to(out.dtype.element_ty), i < n)


@jit(do_not_specialize=["rows"])
def activation_bwd_kernel(
    d_out,  # [rows, N]
    pre,  # [rows, N]
    d_pre,  # [rows, N]
    out,  # [rows, N] or None
    partials,  # float32 [splits, N] or None
    rows,
    N: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Walk over every n-th block of rows, n the number of splits, in BLOCK_N columns.

    Write d_pre = d_out · (gate + pre · gate'), and where somebody asks for them out = pre · gate and d_pre's sums.
    """
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_column = column < N
    sums = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    blocks = tl.cdiv(rows, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):  # type: ignore[misc]
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & in_column[None, :]
        i = row.to(tl.int64)[:, None] * N + column[None, :]
        x = tl.load(pre + i, mask, other=0.0).to(tl.float32)
        gate, slope = gate_and_slope(x, KIND)
        gradient = tl.load(d_out + i, mask, other=0.0).to(tl.float32) * slope
        tl.store(d_pre + i, gradient.to(d_pre.dtype.element_ty), mask)
        if out is not None:
            tl.store(out + i, (x * gate).to(out.dtype.element_ty), mask)
        if partials is not None:
            sums += gradient
    if partials is not None:
        tl.store(partials + tl.program_id(0).to(tl.int64) * N + column, tl.sum(sums, 0), in_column)


def activation_fwd(pre: Tensor, kind: str) -> Tensor:
    """Launch the forward kernel on contiguous ``pre``."""
    out = torch.empty_like(pre)
    launch(activation_fwd_kernel, (cdiv(pre.numel(), BLOCK),), pre, out, pre.numel(), KIND=kind, BLOCK=BLOCK)
    return out


def activation_bwd(
    d_out: Tensor, pre: Tensor, kind: str, value: bool, sums: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel on contiguous ``[..., N]``: d_pre; with ``value`` the forward's out, else ``[0]``.

    With a dtype ``sums`` the third is d_pre summed over rows in float32, ``[N]``: the gradient of a bias; else ``[0]``.
    """
    d_pre, out, total = _bwd_outputs(d_out, pre, kind, value, sums)
    width = pre.shape[-1] if pre.dim() else 1
    rows = pre.numel() // max(width, 1)
    tiles = max(cdiv(width, BLOCK_N), 1)
    splits = min(cdiv(rows, BLOCK_ROWS), cdiv(PROGRAMS_TOGETHER * processors(pre.device), tiles))
    partials = None if sums is None else torch.empty((splits, width), dtype=torch.float32, device=pre.device)
    launch(
        activation_bwd_kernel,
        (splits, tiles),
        *(d_out, pre, d_pre, out if value else None, partials, rows),
        N=width,
        KIND=kind,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_N=BLOCK_N,
        STAGES=3,
    )
    if partials is not None:
        sum_partials(partials, total)
    return d_pre, out, total


def _bwd_outputs(
    _d_out: Tensor, pre: Tensor, _kind: str, value: bool, sums: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    empty = pre.new_empty(0)
    d_pre, out = torch.empty_like(pre), torch.empty_like(pre) if value else empty
    return d_pre, out, pre.new_empty(0) if sums is None else pre.new_empty(pre.shape[-1], dtype=sums)


activation_fwd_op = define(
    "activation_fwd(Tensor pre, str kind) -> Tensor", activation_fwd, lambda pre, kind: torch.empty_like(pre)
)
activation_bwd_op = define(
    "activation_bwd(Tensor d_out, Tensor pre, str kind, bool value, ScalarType? sums) -> (Tensor, Tensor, Tensor)",
    activation_bwd,
    _bwd_outputs,
)


class ActivationFunction(torch.autograd.Function):
    """Joins the forward op to the backward op; ``pre`` is contiguous."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, kind: Activation) -> Tensor:
        """Keep what is read."""
        ctx.save_for_backward(pre)
        ctx.kind = kind
        return activation_fwd_op(pre, kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The value is not made again: nobody here needs it."""
        (pre,) = ctx.saved_tensors
        return activation_bwd_op(gradients[0].contiguous(), pre, ctx.kind, False, None)[0], None


def activation(pre: Tensor, kind: Activation) -> Tensor:
    """Return ``silu``: pre · sigmoid(pre), or ``gelu``: pre · Φ(pre), the exact one with erf; ``pre`` of any shape.

    16-bit numbers are computed in float32. Raises ValueError for another ``kind``, and of the kernels for a dtype they
    do not take.
    """
    check_activation("activation", "kind", kind)
    return _dispatch(pre, kind)


def activation_backward(d_out: Tensor, pre: Tensor, kind: Activation) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of ``pre``, d_out · activation'(pre), the activation itself, and the gradient's sums.

    Outside of autograd; ``d_out`` and ``pre`` have one shape ``[..., N]`` and dtype. The gradient of the weights that
    read the activation needs its value, which the forward pass then need not keep; the sums ``[N]`` over all rows,
    float32 or wider, are the gradient of a bias in ``pre``. Raises what :func:`activation` does.
    """
    check_activation("activation_backward", "kind", kind)
    check_shape("activation_backward", "d_out", d_out, pre.shape)
    check_dtype("activation_backward", "d_out", d_out, (pre.dtype,))
    check_device("activation_backward", "pre", pre.device, d_out=d_out)
    if backend.choose("activation", pre.device).path == "fused":
        check_dtype("activation_backward", "pre", pre)
        return activation_bwd_op(d_out.contiguous(), pre.contiguous(), kind, True, torch.float32)
    aten = torch.ops.aten
    d_pre = aten.silu_backward(d_out, pre) if kind == "silu" else aten.gelu_backward(d_out, pre)
    wide = torch.promote_types(pre.dtype, torch.float32)
    return d_pre, activation_reference(pre, kind), d_pre[None].flatten(0, -2).sum(0, dtype=wide)


def check_activation(op: str, name: str, kind: str) -> None:
    """Refuse an activation that is not known."""
    if kind not in get_args(Activation):
        raise ValueError(f"{op}: {name} is {kind!r}, expected one of {get_args(Activation)}")


def activation_reference(pre: Tensor, kind: Activation) -> Tensor:
    """Compute :func:`activation` in plain PyTorch."""
    return F.silu(pre) if kind == "silu" else F.gelu(pre)


def _activation_cuda(pre: Tensor, kind: Activation) -> Tensor:
    check_dtype("activation", "pre", pre)
    return ActivationFunction.apply(pre.contiguous(), kind)


_dispatch = backend.register("activation", reference=activation_reference, fused={"cuda": _activation_cuda})


def _pre(*shape: int, kind: Activation, scale: float = 1.0) -> MakeInputs:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        pre = draw_normal(shape, generator, device, dtype)
        pre.data.mul_(scale)
        return {"pre": pre, "kind": kind}

    return make


SPEC = Spec(
    name="activation",
    op=activation,
    reference=activation_reference,
    cases=(
        Case("silu", _pre(3, 5, 96, kind="silu")),
        Case("gelu", _pre(37, 48, kind="gelu")),
        Case("silu, odd", _pre(3, 1013, kind="silu", scale=8.0)),
        Case("gelu, odd", _pre(3, 1013, kind="gelu", scale=3.0)),
        Case("one number", _pre(1, kind="gelu")),
        Case("no number", _pre(0, 32, kind="silu")),
        Case("stage 1, silu", _pre(131_072, 3072, kind="silu"), paper=True),
        Case("captions, gelu", _pre(4096 * 18, 3072, kind="gelu"), paper=True),
    ),
    forward=lambda inputs: Work(bytes=2 * inputs["pre"].nbytes),
    backward=lambda inputs: Work(bytes=3 * inputs["pre"].nbytes),
)
