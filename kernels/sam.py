"""Sharpness-aware minimisation over flat buffers: the gradient's norm, and the step along it. Nothing waits.

SAM perturbs the copy that the network computes with (:mod:`.flat_buffers`), never the master: taking the perturbation
back costs nothing, for AdamW writes the copy anew.
"""

from typing import Any

import torch
from torch import Tensor

from . import backend
from .checks import check_device, check_dtype, check_shape
from .flat_buffers import (
    PAPER_NARROW_SEGMENTS,
    PAPER_SEGMENTS,
    SEGMENT,
    check_buffers,
    draw_flat,
    write_copy,
)
from .precision import at_least_float32
from .sam_triton import gradient_norm_op, sam_perturb_op
from .spec import Case, Inputs, MakeInputs, Spec, Work

_NORM_ROW = 4096


def gradient_norm(gradient: Tensor) -> Tensor:
    """Return the L2 norm of a flat ``gradient`` ``[N]``, 0-d and at least float32; no element has norm 0.

    The same bits for the same gradient. It is infinite where the sum of squares overflows. Raises ValueError where the
    gradient is not flat.
    """
    if gradient.dim() != 1:
        raise ValueError(f"gradient_norm: gradient has shape {list(gradient.shape)}, expected one dimension")
    return _dispatch_norm(gradient)


def gradient_norm_reference(gradient: Tensor) -> Tensor:
    """Compute :func:`gradient_norm` in plain PyTorch, in two levels: a CPU adds one long row up with too much error."""
    flat = at_least_float32(gradient).flatten()
    whole = len(flat) // _NORM_ROW * _NORM_ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _NORM_ROW), dim=1)
    return torch.linalg.vector_norm(torch.cat((rows, flat[whole:])))


def sam_perturb_(
    master: Tensor,
    direction: Tensor,
    norm: Tensor,
    narrow: Tensor,
    wide: Tensor,
    *,
    rho: float,
    zero_direction: bool = True,
) -> None:
    """Write master + rho · direction / ``norm``, rounded, to ``narrow`` and ``wide``: SAM's ascent step.

    ``master`` and ``direction`` ``[N]``, N a multiple of ``SEGMENT``; ``narrow`` ``[n]``, ``wide`` ``[N - n]``;
    ``norm`` 0-d, that of the direction: where it is 0 or not finite nothing is added. ``zero_direction`` leaves the
    direction zero, for the next gradient. Raises ValueError on shapes, dtypes or devices that do not fit.
    """
    check_buffers("sam_perturb", master, narrow, wide, direction=direction)
    check_shape("sam_perturb", "norm", norm, ())
    check_device("sam_perturb", "master", master.device, norm=norm)
    _dispatch_perturb(master, direction, norm, narrow, wide, rho, zero_direction)


def sam_perturb_reference(
    master: Tensor, direction: Tensor, norm: Tensor, narrow: Tensor, wide: Tensor, rho: float, zero_direction: bool
) -> None:
    """Compute :func:`sam_perturb_` in plain PyTorch."""
    usable = norm.isfinite() & (norm > 0)
    factor = torch.where(usable, rho / norm, 0.0).to(master.dtype)
    write_copy(master + torch.where(usable, direction * factor, 0.0), narrow, wide)
    if zero_direction:
        direction.zero_()


def _norm_cuda(gradient: Tensor) -> Tensor:
    check_dtype("gradient_norm", "gradient", gradient, (torch.float32,))
    return gradient_norm_op(gradient.contiguous())


def _perturb_cuda(master: Tensor, *rest: Any) -> None:
    check_dtype("sam_perturb", "master", master, (torch.float32,))
    sam_perturb_op(master, *rest)


_dispatch_norm = backend.register("gradient_norm", reference=gradient_norm_reference, fused={"cuda": _norm_cuda})
_dispatch_perturb = backend.register("sam_perturb", reference=sam_perturb_reference, fused={"cuda": _perturb_cuda})


def perturbed_copy(**inputs: Any) -> dict[str, Tensor]:
    """Call :func:`sam_perturb_` and return what it changed."""
    sam_perturb_(**inputs)
    return {name: inputs[name] for name in ("narrow", "wide", "direction")}


def _perturbed_copy_reference(**inputs: Any) -> dict[str, Tensor]:
    sam_perturb_reference(**inputs)
    return {name: inputs[name] for name in ("narrow", "wide", "direction")}


def _norm_per_tensor(gradient: Tensor) -> Tensor:
    """Take the norm of the tensors' norms, as ``clip_grad_norm_`` does."""
    return torch.nn.utils.get_total_norm(_tensors(gradient))


def _perturb_per_tensor(**inputs: Any) -> dict[str, Tensor]:
    """Do what a SAM optimiser does tensor by tensor: keep the weights, add, cast as autocast would, put them back."""
    master, direction, narrow = inputs["master"], inputs["direction"], inputs["narrow"]
    kept = []
    for weight, along in zip(_tensors(master), _tensors(direction), strict=True):
        kept.append(weight.clone())
        weight.add_(along * (inputs["rho"] / inputs["norm"]))
    write_copy(master, narrow, inputs["wide"])
    for weight, along, old in zip(_tensors(master), _tensors(direction), kept, strict=True):
        weight.copy_(old)
        along.zero_()
    return {name: inputs[name] for name in ("narrow", "wide", "direction")}


def _tensors(buffer: Tensor) -> tuple[Tensor, ...]:
    """Cut a buffer into about 300 tensors, as many as the paper's networks have."""
    return buffer.split(max(buffer.numel() // 300, 1)) if buffer.numel() else (buffer,)


def _flat(elements: int, *, scale: float = 1.0, value: float | None = None) -> MakeInputs:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        gradient = draw_flat(elements, generator, device, scale)
        if value is not None:
            gradient[elements // 2] = value
        return {"gradient": gradient}

    return make


def _weights(narrow: int, wide: int, *, norm: float | None = None, zero_direction: bool = True) -> MakeInputs:
    """So many segments of either part; weights of the size trained ones have."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        elements = (narrow + wide) * SEGMENT
        direction = draw_flat(elements, generator, device, 1e-3)
        return {
            "master": draw_flat(elements, generator, device, 0.03),
            "direction": direction,
            "norm": gradient_norm_reference(direction) if norm is None else torch.tensor(norm, device=device),
            "narrow": torch.empty(narrow * SEGMENT, dtype=dtype, device=device),
            "wide": torch.empty(wide * SEGMENT, device=device),
            "rho": 0.075,
            "zero_direction": zero_direction,
        }

    return make


def _perturb_work(inputs: Inputs) -> Work:
    """Weights and direction are read, the copy and, where asked, zeros are written."""
    buffers = ("master", "direction", "narrow", "wide", *(("direction",) if inputs["zero_direction"] else ()))
    return Work(bytes=sum(inputs[name].nbytes for name in buffers), flops=2 * inputs["master"].numel())


NORM_SPEC = Spec(
    name="gradient_norm",
    op=gradient_norm,
    reference=gradient_norm_reference,
    cases=(
        Case("more than one block", _flat(20_001)),
        Case("one element", _flat(1)),
        Case("no element", _flat(0)),
        Case("small", _flat(3000, scale=1e-12)),
        Case("zero", _flat(100, scale=0.0)),
        Case("stage 2", _flat(PAPER_SEGMENTS * SEGMENT), paper=True),
    ),
    forward=lambda inputs: Work(bytes=inputs["gradient"].nbytes, flops=2 * inputs["gradient"].numel()),
    rivals={"per_tensor": _norm_per_tensor},
)

PERTURB_SPEC = Spec(
    name="sam_perturb",
    op=perturbed_copy,
    reference=_perturbed_copy_reference,
    cases=(
        Case("both parts", _weights(3, 2)),
        Case("narrow alone", _weights(2, 0)),
        Case("wide alone", _weights(0, 70)),
        Case("direction kept", _weights(1, 1, zero_direction=False)),
        Case("norm zero", _weights(1, 1, norm=0.0)),
        Case("norm infinite", _weights(1, 1, norm=float("inf"))),
        Case("stage 2", _weights(PAPER_NARROW_SEGMENTS, PAPER_SEGMENTS - PAPER_NARROW_SEGMENTS), paper=True),
    ),
    forward=_perturb_work,
    rivals={"per_tensor": _perturb_per_tensor},
)
