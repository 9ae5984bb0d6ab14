"""Attention pooling: one learned query per head reads a whole sequence into one vector."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend
from .attention_pool_ops import MAX_QUERY_BYTES, MAX_WIDTH, attention_pool_bwd_op, attention_pool_fwd_op, query_bytes
from .checks import check_device, check_dtype, check_layout, check_shape
from .layout import Layout, Packed, pad, padded_layout
from .precision import autocast_dtype, gradient_dtype
from .spec import Case, ErrorBudget, Inputs, MakeInputs, Spec, Work, draw_normal


class AttentionPoolFunction(torch.autograd.Function):
    """Joins the two ops; rows ``[tokens, D]`` in, pooled values ``[B, D]`` out."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        query: Tensor,
        key_weight: Tensor,
        key_bias: Tensor,
        value_weight: Tensor,
        value_bias: Tensor,
        heads: int,
        *rest: Any,
    ) -> Tensor:
        """Run forward and keep tokens, weights and what was pooled."""
        out, *kept = attention_pool_fwd_op(hidden, query, key_weight, value_weight, value_bias, heads, *rest)
        mask, cu_seqlens, _, ctx.longest, _ = rest
        ctx.parameter_dtypes = gradient_dtype(key_weight), gradient_dtype(value_weight)
        ctx.save_for_backward(hidden, query, key_weight, value_weight, *kept, mask, cu_seqlens, key_bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:  # type: ignore[override]
        """Run backward. A key bias shifts all scores of a head alike: its gradient is zero."""
        *saved, key_bias = ctx.saved_tensors
        d_hidden, d_query, d_key_weight, d_value_weight, d_value_bias = attention_pool_bwd_op(
            d_out.contiguous(), *saved, ctx.longest, *ctx.parameter_dtypes
        )
        d_key_bias = torch.zeros_like(key_bias)
        return d_hidden, d_query, d_key_weight, d_key_bias, d_value_weight, d_value_bias, *[None] * 6


def attention_pool(
    hidden: Tensor,
    query: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    heads: int,
    layout: Layout,
) -> Tensor:
    """Return concat over heads of softmax(q · K(h) / sqrt(head_dim)) V(h): ``[B, D]``.

    ``hidden`` ``[B, L, D]`` or ``[T, D]``; ``query`` ``[D]``, viewed as (heads, D / heads); weights ``[D, D]``, biases
    ``[D]``. A padded sequence with no valid token is averaged over its slots and a packed one of no token gives
    ``value_bias``, so the result stays finite. Products and result are in autocast's dtype where it is on, else in
    ``hidden``'s, which fused may differ from the parameters'; statistics and sums are float32.

    Raises ValueError on shapes, heads or devices that do not fit and, fused, on a dtype, width or number of heads the
    kernels do not take.
    """
    op, width = "attention_pool", hidden.shape[-1]
    check_layout(op, "hidden", hidden, layout)
    if heads < 1 or width % heads:
        raise ValueError(f"{op}: heads is {heads}, expected a divisor of hidden's width {width}")
    for name, vector in {"query": query, "key_bias": key_bias, "value_bias": value_bias}.items():
        check_shape(op, name, vector, (width,))
    for name, weight in {"key_weight": key_weight, "value_weight": value_weight}.items():
        check_shape(op, name, weight, (width, width))
    parameters = {"query": query, "key_weight": key_weight, "key_bias": key_bias}
    check_device(op, "hidden", hidden.device, **parameters, value_weight=value_weight, value_bias=value_bias)
    return _dispatch(hidden, query, key_weight, key_bias, value_weight, value_bias, heads, layout)


def attention_pool_reference(
    hidden: Tensor,
    query: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    heads: int,
    layout: Layout,
) -> Tensor:
    """Compute :func:`attention_pool` with keys and values of every token; packed tokens are padded first."""
    if isinstance(layout, Packed):
        hidden, layout = pad(hidden, layout), padded_layout(layout)
    key = F.linear(hidden, key_weight, key_bias).unflatten(-1, (heads, -1))
    value = F.linear(hidden, value_weight, value_bias).unflatten(-1, (heads, -1))
    scores = torch.einsum("blhd,hd->bhl", key, query.view(heads, -1).to(key.dtype)) / math.sqrt(key.shape[-1])
    scores = scores.masked_fill(~layout.mask[:, None, :], torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).to(value.dtype)
    return torch.einsum("bhl,blhd->bhd", weights, value).flatten(1)


def _attention_pool_cuda(
    hidden: Tensor,
    query: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    heads: int,
    layout: Layout,
) -> Tensor:
    op, width = "attention_pool", hidden.shape[-1]
    operands = {"hidden": hidden, "query": query, "key_weight": key_weight, "value_weight": value_weight}
    for name, tensor in operands.items():
        check_dtype(op, name, tensor)
    check_dtype(op, "key_bias", key_bias, (key_weight.dtype,))
    check_dtype(op, "value_bias", value_bias, (value_weight.dtype,))
    dtype = autocast_dtype(hidden.device) or hidden.dtype
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"{op}: hidden is {width} wide, expected 1 to {MAX_WIDTH}")
    if query_bytes(width, heads, dtype) > MAX_QUERY_BYTES:
        raise ValueError(f"{op}: heads is {heads}, expected fewer: queries {width} wide in {dtype} exceed the chip")
    if isinstance(layout, Packed):
        where = None, layout.cu_seqlens.contiguous(), layout.batch_size, layout.max_len
    else:
        where = layout.mask.contiguous(), None, *layout.mask.shape
    parameters = (tensor.contiguous() for tensor in (query, key_weight, key_bias, value_weight, value_bias))
    return AttentionPoolFunction.apply(hidden.reshape(-1, width).contiguous(), *parameters, heads, *where, dtype)


_dispatch = backend.register("attention_pool", reference=attention_pool_reference, fused={"cuda": _attention_pool_cuda})


def _sequences(
    lengths: list[int], width: int, heads: int, *, padded: bool = False, scale: float = 1.0, offset: float = 0.0
) -> MakeInputs:
    """Tokens ``scale`` times normal beside what all have in common, ``offset`` times normal."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        packed = Packed.from_lengths(lengths, device)
        slots = (len(lengths), packed.padded_width) if padded else (packed.total,)
        scales = {
            "hidden": ((*slots, width), scale),
            "query": ((width,), 1.0),
            "key_weight": ((width, width), width**-0.5),
            "key_bias": ((width,), 0.1),
            "value_weight": ((width, width), width**-0.5),
            "value_bias": ((width,), 0.1),
        }
        tensors = {name: draw_normal(shape, generator, device, dtype) for name, (shape, _) in scales.items()}
        for name, tensor in tensors.items():
            tensor.data.mul_(scales[name][1])
        tensors["hidden"].data.add_(draw_normal((width,), generator, device, dtype).data * offset)
        return {**tensors, "heads": heads, "layout": padded_layout(packed) if padded else packed}

    return make


def _parameter_bytes(inputs: Inputs) -> int:
    return sum(inputs[name].nbytes for name in ("query", "key_weight", "value_weight", "value_bias"))


def _forward_work(inputs: Inputs) -> Work:
    """Read tokens and parameters once, write ``[B, D]``; per token two dot products a head, per sequence its values."""
    hidden, heads, sequences = inputs["hidden"], inputs["heads"], inputs["layout"].batch_size
    out_bytes = sequences * hidden.shape[-1] * hidden.element_size()
    on_weights = 2 * inputs["value_weight"].numel() * (sequences + 1)
    return Work(
        bytes=hidden.nbytes + _parameter_bytes(inputs) + out_bytes, flops=4 * hidden.numel() * heads + on_weights
    )


def _backward_work(inputs: Inputs) -> Work:
    """Read what forward does and ``[B, D]``, write the gradients of tokens and parameters; twice forward's products."""
    forward = _forward_work(inputs)
    return Work(bytes=forward.bytes + inputs["hidden"].nbytes + _parameter_bytes(inputs), flops=2 * forward.flops)


SPEC = Spec(
    name="attention_pool",
    op=attention_pool,
    reference=attention_pool_reference,
    cases=(
        Case("packed", _sequences([5, 0, 1, 39], 48, 4)),
        Case("padded", _sequences([5, 1, 39], 48, 4, padded=True)),
        Case("one head", _sequences([3, 18], 32, 1)),
        Case("more columns than a block, odd heads", _sequences([20, 3], 264, 12)),
        Case("more sequences than programs at once", _sequences([2, 1, 3, 17, 1], 16, 2)),
        Case("one column a head", _sequences([3, 2], 8, 8)),
        Case("a padded sequence with no token", _sequences([4, 0], 16, 2, padded=True)),
        Case("no token", _sequences([0, 0], 16, 2)),
        Case("no sequence", _sequences([], 16, 2)),
        Case("sharp", _sequences([40, 7], 64, 2, scale=3.0)),
        Case("tokens much alike", _sequences([70, 30], 96, 4, scale=0.3, offset=3.0)),
        Case("stage 2, audio", _sequences([512] * 256, 768, 8), paper=True),
        Case("stage 2, captions", _sequences([18] * 4096, 768, 1), paper=True),
    ),
    forward=_forward_work,
    backward=_backward_work,
    # Backward computes the weights again, and where its products are not rounded as forward's were, the weights of a
    # sharp softmax do not add up to one by as much as the scores' rounding.
    budget=ErrorBudget(factor=4.0),
    tensor_cores=True,
)
