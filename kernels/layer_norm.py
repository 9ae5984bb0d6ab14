"""Layer normalisation over the last dimension, alone or of a residual sum, whose update may drop out on the way.

All statistics and sums are float32. The kernels keep whole rows in registers: forward reads and writes every element
once, backward reads two and writes one (two where update and residual differ in dtype or dropout lies between them).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend
from .checks import FUSED_DTYPES, check_device, check_dtype, check_layout, check_shape
from .dropout import DropoutKey, dropout_reference, op_arguments, torch_dropout, without_dropout
from .layer_norm_triton import MAX_WIDTH, layer_norm_bwd_op, layer_norm_fwd_op
from .layout import Layout, Packed, padded_layout
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal


class LayerNormFunction(torch.autograd.Function):
    """Joins the two ops; rows ``[rows, D]`` in, normed rows and new residual out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, *rest: Any) -> Any:
        """Run forward and keep what was normalised."""
        normed, new_residual, mean, rstd = layer_norm_fwd_op(x, residual, weight, bias, *rest)
        _, _, ctx.rate, ctx.integers, *rows = rest
        ctx.x_dtype, ctx.is_sum = x.dtype, residual is not None
        ctx.save_for_backward(x if residual is None else new_residual, weight, mean, rstd, *rows)
        ctx.set_materialize_grads(False)
        return normed, new_residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # type: ignore[override]
        """Run backward; an output nobody used has no gradient."""
        d_normed, d_new_residual = gradients
        h, weight, mean, rstd, *rows = ctx.saved_tensors
        d_normed = torch.zeros_like(h) if d_normed is None else d_normed.contiguous()
        d_sum = d_new_residual.contiguous() if ctx.is_sum and d_new_residual is not None else None
        d_residual, d_x, d_parameters = layer_norm_bwd_op(
            d_normed, d_sum, h, weight, mean, rstd, ctx.x_dtype, ctx.rate, ctx.integers, *rows
        )
        d_weight, d_bias = d_parameters.unbind()
        d_x = d_x if d_x.dim() == 2 else d_residual
        return d_x, d_residual if ctx.is_sum else None, d_weight, d_bias, *[None] * 7


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) · weight + bias over the last dimension of ``x`` ``[..., D]``, any layout.

    ``weight`` and ``bias`` ``[D]``, in ``x``'s dtype or another (float32 beside bfloat16 under autocast); the variance
    is the biased one, statistics are float32. The result has ``dtype``, ``x``'s where it is not given. Raises
    ValueError on shapes or devices that do not fit and, fused, on a dtype or width the kernels do not take.
    """
    _check("layer_norm", x, None, weight, bias)
    return _dispatch(x, weight, bias, eps, dtype=dtype)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    dropout_key: DropoutKey | None = None,
    layout: Layout | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return :func:`layer_norm` of s = residual + dropout(x), and s, in ``residual``'s dtype and shape.

    ``x`` and ``residual`` ``[..., D]``; ``dropout_key`` as in :func:`~cacophony.kernels.dropout.dropout` and then the
    tokens' ``layout``. The normed has ``dtype``, ``residual``'s where it is not given. Raises what :func:`layer_norm`
    does.
    """
    _check("add_layer_norm", x, residual, weight, bias)
    if layout is not None:
        check_layout("add_layer_norm", "x", x, layout)
    elif dropout_key is not None:
        raise ValueError("add_layer_norm: layout is None, expected the tokens' layout beside dropout_key")
    return _add_dispatch(x, residual, weight, bias, eps, dropout_key=dropout_key, layout=layout, dtype=dtype)


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Compute :func:`layer_norm` in plain PyTorch, in the widest dtype of the operands."""
    wide = torch.promote_types(x.dtype, weight.dtype)
    normed = F.layer_norm(x.to(wide), (x.shape[-1],), weight.to(wide), bias.to(wide), eps)
    return normed.to(x.dtype if dtype is None else dtype)


def add_layer_norm_reference(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    dropout_key: DropoutKey | None = None,
    layout: Layout | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`add_layer_norm` in plain PyTorch."""
    if dropout_key is not None and dropout_key.rate > 0.0 and layout is not None:
        x = dropout_reference(x, dropout_key, layout)
    new_residual = (residual + x).to(residual.dtype)
    return layer_norm_reference(new_residual, weight, bias, eps, dtype=dtype), new_residual


def _layer_norm_cuda(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, dtype: torch.dtype | None) -> Tensor:
    _check_fused("layer_norm", dtype, x=x, weight=weight, bias=bias)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    dropout_arguments = op_arguments(None, None, x.device)
    normed, _ = LayerNormFunction.apply(
        rows, None, weight.contiguous(), bias.contiguous(), eps, dtype or x.dtype, *dropout_arguments
    )
    return normed.view(x.shape)


def _add_layer_norm_cuda(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    dropout_key: DropoutKey | None,
    layout: Layout | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    _check_fused("add_layer_norm", dtype, x=x, residual=residual, weight=weight, bias=bias)
    rows, residual_rows = (tensor.reshape(-1, x.shape[-1]).contiguous() for tensor in (x, residual))
    dropout_arguments = op_arguments(dropout_key, layout, x.device)
    normed, new_residual = LayerNormFunction.apply(
        rows, residual_rows, weight.contiguous(), bias.contiguous(), eps, dtype or residual.dtype, *dropout_arguments
    )
    return normed.view(x.shape), new_residual.view(x.shape)


def _check(op: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    check_shape(op, "weight", weight, x.shape[-1:])
    check_shape(op, "bias", bias, x.shape[-1:])
    if residual is not None:
        check_shape(op, "residual", residual, x.shape)
    check_device(op, "x", x.device, residual=residual, weight=weight, bias=bias)


def _check_fused(op: str, dtype: torch.dtype | None, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        check_dtype(op, name, tensor)
    if dtype is not None and dtype not in FUSED_DTYPES:
        raise ValueError(f"{op}: dtype is {dtype}, expected one of {FUSED_DTYPES}")
    if tensors["weight"].dtype != tensors["bias"].dtype:
        raise ValueError(f"{op}: bias is {tensors['bias'].dtype}, expected {tensors['weight'].dtype} as weight")
    width = tensors["weight"].shape[0]
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"{op}: x is {width} wide, expected 1 to {MAX_WIDTH}")


_dispatch = backend.register("layer_norm", reference=layer_norm_reference, fused={"cuda": _layer_norm_cuda})
_add_dispatch = backend.register(
    "add_layer_norm", reference=add_layer_norm_reference, fused={"cuda": _add_layer_norm_cuda}
)


def _rows(*shape: int, scale: float = 1.0, offset: float = 0.0, stream: torch.dtype | None = None) -> MakeInputs:
    """Rows x; with ``stream`` they and the parameters have that dtype and the normed the asked one, as in autocast."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        sizes = shape, shape[-1:], shape[-1:]
        x, weight, bias = (draw_normal(size, generator, device, stream or dtype) for size in sizes)
        x.data.mul_(scale).add_(offset)
        return {"x": x, "weight": weight, "bias": bias, "eps": 1e-6, "dtype": dtype if stream else None}

    return make


def _sums(
    lengths: list[int], width: int, *, rate: float = 0.0, padded: bool = False, stream: torch.dtype | None = None
) -> MakeInputs:
    """Tokens x of sequences of these ``lengths``; residual and parameters in ``stream`` where it is given."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        packed = Packed.from_lengths(lengths, device)
        shape = (len(lengths), packed.padded_width, width) if padded else (packed.total, width)
        residual = _rows(*shape, stream=stream)(generator, device, dtype)
        sample_index = torch.randint(2**40, (len(lengths),), generator=generator).to(device)
        return {
            **residual,
            "x": draw_normal(shape, generator, device, dtype),
            "residual": residual["x"],
            "dropout_key": DropoutKey(rate=rate, seed=2**40 + 3, step=1, sample_index=sample_index, site=5),
            "layout": padded_layout(packed) if padded else packed,
        }

    return make


def _forward_work(inputs: Inputs) -> Work:
    """Read every operand, write the normed and the sum."""
    x, residual = inputs["x"], inputs.get("residual")
    stream = x if residual is None else residual
    normed_bytes = stream.numel() * (inputs["dtype"] or stream.dtype).itemsize
    return Work(bytes=x.nbytes + normed_bytes + (0 if residual is None else 2 * residual.nbytes))


def _backward_work(inputs: Inputs) -> Work:
    """Read what was normalised and the gradients of what came out, write the gradients of what went in.

    Residual and x share one where nothing lies between them.
    """
    x, residual = inputs["x"], inputs.get("residual")
    stream = x if residual is None else residual
    normed_bytes = stream.numel() * (inputs["dtype"] or stream.dtype).itemsize
    if residual is None:
        return Work(bytes=normed_bytes + 2 * x.nbytes)
    key = inputs["dropout_key"]
    shared = (key is None or key.rate == 0.0) and x.dtype == residual.dtype
    return Work(bytes=normed_bytes + 3 * residual.nbytes + (0 if shared else x.nbytes))


def _liger_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, dtype: torch.dtype | None) -> Tensor:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # type: ignore[import-not-found]

    return LigerLayerNormFunction.apply(x, weight, bias, eps).to(x.dtype if dtype is None else dtype)


def _torch_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    dropout_key: DropoutKey,
    layout: Layout,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    total = residual + torch_dropout(x, dropout_key, layout)
    return layer_norm_reference(total, weight, bias, eps, dtype=dtype), total


SPEC = Spec(
    name="layer_norm",
    op=layer_norm,
    reference=layer_norm_reference,
    cases=(
        Case("odd", _rows(3, 5, 96)),
        Case("one row", _rows(1, 1000)),
        Case("one feature", _rows(3, 1)),
        Case("no row", _rows(0, 48)),
        Case("more rows than one round of programs", _rows(300, 96)),
        Case("widest", _rows(3, MAX_WIDTH)),
        Case("large", _rows(9, 768, scale=1e4)),
        Case("far from zero", _rows(9, 768, offset=100.0)),
        Case("constant rows", _rows(9, 96, scale=0.0, offset=3.0)),
        Case("float32 stream", _rows(5, 768, stream=torch.float32)),
        Case("stage 1", _rows(131_072, 768), paper=True),
        Case("stage 1, float32 stream", _rows(131_072, 768, stream=torch.float32), paper=True),
    ),
    forward=_forward_work,
    backward=_backward_work,
    rivals={"liger": _liger_layer_norm},
)

ADD_SPEC = Spec(
    name="add_layer_norm",
    op=add_layer_norm,
    reference=add_layer_norm_reference,
    cases=(
        Case("packed, dropout", _sums([4, 0, 7, 2], 96, rate=0.3)),
        Case("packed", _sums([4, 1, 7], 96)),
        Case("padded, dropout", _sums([4, 0, 7], 1000, rate=0.1, padded=True)),
        Case("float32 stream", _sums([5, 2], 768, stream=torch.float32)),
        Case("float32 stream, dropout", _sums([5, 2], 768, rate=0.1, stream=torch.float32)),
        Case("no row", _sums([], 48, rate=0.1)),
        Case("stage 1", _sums([512] * 256, 768), paper=True),
        Case("stage 1, float32 stream", _sums([512] * 256, 768, stream=torch.float32), paper=True),
        Case("captions, dropout", _sums([18] * 4096, 768, rate=0.1), paper=True),
    ),
    forward=_forward_work,
    backward=_backward_work,
    rivals={"torch": _torch_add_layer_norm},
    rivals_checked_on=without_dropout,
)
