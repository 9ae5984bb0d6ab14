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
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal
from .triton_runtime import cdiv, jit, launch, tl

Activation = Literal["silu", "gelu"]

BLOCK = 1024
"""Elements of a program: one 16-byte load of 16-bit numbers a thread and operand."""
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_RSQRT_TWO_PI = tl.constexpr(1.0 / math.sqrt(2.0 * math.pi))


@jit
def _gate(x, KIND: tl.constexpr):
    """What x is multiplied by: the logistic function of x, or the normal distribution's."""
    return 1.0 / (1.0 + tl.exp(-x)) if KIND == "silu" else 0.5 * (1.0 + tl.erf(x * _SQRT_HALF))


@jit
def activation_fwd_kernel(pre, out, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Write out = pre · gate(pre)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(pre + i, i < n, other=0.0).to(tl.float32)
    tl.store(out + i, (x * _gate(x, KIND)).to(out.dtype.element_ty), i < n)


@jit
def activation_bwd_kernel(d_out, pre, d_pre, out, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Write d_pre = d_out · (gate + pre · gate'), and out = pre · gate where somebody asks for it."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(pre + i, i < n, other=0.0).to(tl.float32)
    gate = _gate(x, KIND)
    slope = gate + x * (gate * (1.0 - gate) if KIND == "silu" else tl.exp(-0.5 * x * x) * _RSQRT_TWO_PI)
    gradient = tl.load(d_out + i, i < n, other=0.0).to(tl.float32) * slope
    tl.store(d_pre + i, gradient.to(d_pre.dtype.element_ty), i < n)
    if out is not None:
        tl.store(out + i, (x * gate).to(out.dtype.element_ty), i < n)


def activation_fwd(pre: Tensor, kind: str) -> Tensor:
    """Launch the forward kernel on contiguous ``pre``."""
    out = torch.empty_like(pre)
    launch(activation_fwd_kernel, (cdiv(pre.numel(), BLOCK),), pre, out, pre.numel(), KIND=kind, BLOCK=BLOCK)
    return out


def activation_bwd(d_out: Tensor, pre: Tensor, kind: str, value: bool) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel on contiguous tensors: d_pre, and with ``value`` the forward's out, else ``[0]``."""
    d_pre, out = _bwd_outputs(d_out, pre, kind, value)
    launch(
        activation_bwd_kernel,
        (cdiv(pre.numel(), BLOCK),),
        *(d_out, pre, d_pre, out if value else None, pre.numel()),
        KIND=kind,
        BLOCK=BLOCK,
    )
    return d_pre, out


def _bwd_outputs(_d_out: Tensor, pre: Tensor, _kind: str, value: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(pre), torch.empty_like(pre) if value else pre.new_empty(0)


activation_fwd_op = define(
    "activation_fwd(Tensor pre, str kind) -> Tensor", activation_fwd, lambda pre, kind: torch.empty_like(pre)
)
activation_bwd_op = define(
    "activation_bwd(Tensor d_out, Tensor pre, str kind, bool value) -> (Tensor, Tensor)", activation_bwd, _bwd_outputs
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
        return activation_bwd_op(gradients[0].contiguous(), pre, ctx.kind, False)[0], None


def activation(pre: Tensor, kind: Activation) -> Tensor:
    """Return ``silu``: pre · sigmoid(pre), or ``gelu``: pre · Φ(pre), the exact one with erf; ``pre`` of any shape.

    16-bit numbers are computed in float32. Raises ValueError for another ``kind``, and of the kernels for a dtype they
    do not take.
    """
    check_activation("activation", "kind", kind)
    return _dispatch(pre, kind)


def activation_backward(d_out: Tensor, pre: Tensor, kind: Activation) -> tuple[Tensor, Tensor]:
    """Return the gradient of ``pre``, d_out · activation'(pre), and the activation itself, outside of autograd.

    ``d_out`` and ``pre`` have one shape and dtype. The gradient of the weights that read the activation needs its
    value, which the forward pass then need not keep. Raises what :func:`activation` does.
    """
    check_activation("activation_backward", "kind", kind)
    check_shape("activation_backward", "d_out", d_out, pre.shape)
    check_dtype("activation_backward", "d_out", d_out, (pre.dtype,))
    check_device("activation_backward", "pre", pre.device, d_out=d_out)
    if backend.choose("activation", pre.device).path == "fused":
        check_dtype("activation_backward", "pre", pre)
        return activation_bwd_op(d_out.contiguous(), pre.contiguous(), kind, True)
    aten = torch.ops.aten
    d_pre = aten.silu_backward(d_out, pre) if kind == "silu" else aten.gelu_backward(d_out, pre)
    return d_pre, activation_reference(pre, kind)


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
