"""Scaled dot-product attention over padded or packed sequences: self, causal and cross.

Fused, packed sequences go to the first library that can serve them, or to our own kernels
(:mod:`.attention_providers.choice`). The dropout of attention weights is one mask for all sequences and heads, a pure
function of its key; no library draws it, so with dropout it is our kernels that run, never another network.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import InputError
from . import backend
from .attention_ops import attention_bwd_op, attention_fwd_op, write_gradients
from .attention_providers.choice import REFERENCE, choose_provider
from .attention_reference import attention_bwd_reference, attention_reference
from .checks import check_device, check_dtype, check_shape
from .dropout import DropoutKey
from .layout import Layout, Packed, Padded, padded_layout
from .spans import step_of
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal


class AttentionFunction(torch.autograd.Function):
    """Joins the two ops: packed query, key and value in, out out."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> Any:
        """Run forward and keep its inputs, its output and what is known of the softmax."""
        out, statistics = attention_fwd_op(query, key, value, *arguments)
        query_offsets, key_offsets, *ctx.arguments = arguments
        ctx.save_for_backward(query, key, value, out, statistics, query_offsets, key_offsets)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override]
        """Run backward."""
        return *attention_bwd_op(*gradients, *ctx.saved_tensors, *ctx.arguments), *[None] * 8


@dataclass(frozen=True)
class AttentionSaved:
    """What :func:`attention_bwd` needs beside inputs and output: who computed it, and what it noted of the softmax."""

    provider: str
    statistics: Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_layout: Layout,
    key_layout: Layout,
    *,
    causal: bool = False,
    dropout: DropoutKey | None = None,
) -> Tensor:
    """Return softmax(q kᵀ / sqrt(head_dim)) v for each head.

    ``query`` ``[B, Lq, H, d]`` or ``[Tq, H, d]``, ``key`` and ``value`` likewise with their own layout; the result has
    the query's shape. Keys of padding slots get no weight. Where a sequence has no valid key at all, every slot gets
    the same weight (padded layout) or the result is zero (packed), so it stays finite. ``causal`` aligns the last query
    slot with the last key slot, so that a cached prefix of keys needs no argument (padded layout; packed sequences must
    have as many queries as keys). Padding queries are computed; their values mean nothing.

    Padded tokens stay in plain PyTorch under every backend: what their padding holds is part of the authors' result,
    and no provider computes it. Raises ValueError for mixed layouts, for shapes and devices that do not fit and, under
    backend fused, for a head dim or dtype no provider takes.
    """
    _check(query, key, value, query_layout, key_layout, causal)
    return _dispatch(query, key, value, query_layout, key_layout, causal=causal, dropout=dropout)


@step_of("attention")
@torch.no_grad()
def attention_fwd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_layout: Layout,
    key_layout: Layout,
    *,
    causal: bool = False,
    dropout: DropoutKey | None = None,
) -> tuple[Tensor, AttentionSaved]:
    """Compute :func:`attention` and what its explicit backward, :func:`attention_bwd`, needs; records no graph."""
    _check(query, key, value, query_layout, key_layout, causal)
    choice = backend.choose("attention", query.device)
    if choice.implementation is None:
        raise InputError(f"attention: {choice.reason}")
    options: dict[str, Any] = {"causal": causal, "dropout": dropout}
    provider = REFERENCE
    if choice.path == "fused":
        provider = _provider(query, key, value, query_layout, **options)
    if provider == REFERENCE:
        out = attention_reference(query, key, value, query_layout, key_layout, **options)
        return out, AttentionSaved(REFERENCE, query.new_empty(0))
    out, statistics = attention_fwd_op(query, key, value, *_arguments(query_layout, key_layout, **options), provider)
    return out, AttentionSaved(provider, statistics)


@step_of("attention")
@torch.no_grad()
def attention_bwd(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    saved: AttentionSaved,
    query_layout: Layout,
    key_layout: Layout,
    *,
    causal: bool = False,
    dropout: DropoutKey | None = None,
    gradients: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, given that of ``out``; all else as :func:`attention_fwd` had it.

    They are written into ``gradients`` where these are given: tensors of the inputs' shapes and dtypes, heads and rows
    of which may be strided, such as the three parts of the gradient of one projection.
    """
    options: dict[str, Any] = {"causal": causal, "dropout": dropout}
    if gradients is None:
        gradients = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    if saved.provider != REFERENCE:
        arguments = *_arguments(query_layout, key_layout, **options), saved.provider
        write_gradients(gradients, d_out, query, key, value, out, saved.statistics, *arguments)
        return gradients
    found = attention_bwd_reference(d_out, query, key, value, query_layout, key_layout, **options)
    for gradient, computed in zip(gradients, found, strict=True):
        gradient.copy_(computed)
    return gradients


def _attention_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_layout: Layout,
    key_layout: Layout,
    *,
    causal: bool,
    dropout: DropoutKey | None,
) -> Tensor:
    options: dict[str, Any] = {"causal": causal, "dropout": dropout}
    provider = _provider(query, key, value, query_layout, **options)
    if provider == REFERENCE:
        return attention_reference(query, key, value, query_layout, key_layout, **options)
    return AttentionFunction.apply(query, key, value, *_arguments(query_layout, key_layout, **options), provider)


def _provider(
    query: Tensor, key: Tensor, value: Tensor, query_layout: Layout, causal: bool, dropout: DropoutKey | None
) -> str:
    """Name who computes it where the backend is fused."""
    if isinstance(query_layout, Padded):
        return REFERENCE
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_dtype("attention", name, tensor, (query.dtype,))
        if tensor.numel() >= 2**31:
            raise ValueError(f"attention: {name} has {tensor.numel()} elements, expected fewer than 2**31")
    drops = dropout is not None and dropout.rate > 0.0
    insist = backend.current_backend("attention") == "fused"
    return choose_provider(query.device, query.dtype, query.shape[-1], causal, drops, insist)


def _arguments(
    query_layout: Layout, key_layout: Layout, causal: bool, dropout: DropoutKey | None
) -> tuple[Tensor, Tensor, int, int, bool, float, list[int]]:
    """Return what the ops take between the tensors and the provider."""
    if not (isinstance(query_layout, Packed) and isinstance(key_layout, Packed)):
        raise ValueError("attention: query and key must both be Padded or both Packed")
    rate, names = (dropout.rate, [dropout.seed, dropout.step, dropout.site]) if dropout else (0.0, [0, 0, 0])
    offsets = query_layout.cu_seqlens, key_layout.cu_seqlens
    return *offsets, query_layout.max_len, key_layout.max_len, causal, rate, names


def _check(query: Tensor, key: Tensor, value: Tensor, query_layout: Layout, key_layout: Layout, causal: bool) -> None:
    if isinstance(query_layout, Padded) != isinstance(key_layout, Padded):
        raise ValueError("attention: query and key must both be Padded or both Packed")
    if query_layout.batch_size != key_layout.batch_size:
        found, expected = key_layout.batch_size, query_layout.batch_size
        raise ValueError(f"attention: key_layout has {found} sequences, expected {expected} as query_layout")
    if causal and isinstance(query_layout, Packed) and _slots(query_layout) != _slots(key_layout):
        raise ValueError("attention: causal attention over packed sequences takes the same layout for both sides")
    heads = query.shape[-2:]
    check_shape("attention", "query", query, (*_slots(query_layout), *heads))
    check_shape("attention", "key", key, (*_slots(key_layout), *heads))
    check_shape("attention", "value", value, (*_slots(key_layout), *heads))
    check_device("attention", "query", query.device, key=key, value=value)


def _slots(layout: Layout) -> tuple[int, ...]:
    return tuple(layout.mask.shape) if isinstance(layout, Padded) else (layout.total,)


_dispatch = backend.register("attention", reference=attention_reference, fused={"cuda": _attention_cuda})


def _sequences(
    query_lengths: list[int],
    key_lengths: list[int] | None = None,
    *,
    heads: int,
    head_dim: int,
    causal: bool = False,
    rate: float = 0.0,
    padded: bool = False,
) -> MakeInputs:
    """Self-attention, or cross-attention to sequences of ``key_lengths``."""

    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        sample_index = torch.arange(len(query_lengths), device=device)
        inputs: dict[str, Any] = {"causal": causal, "dropout": DropoutKey(rate, 2**40 + 3, 7, sample_index, site=5)}
        for names, lengths in ((("query",), query_lengths), (("key", "value"), key_lengths or query_lengths)):
            packed = Packed.from_lengths(lengths, device)
            slots = (len(lengths), packed.padded_width) if padded else (packed.total,)
            for name in names:
                inputs[name] = draw_normal((*slots, heads, head_dim), generator, device, dtype)
            inputs[f"{names[0]}_layout"] = padded_layout(packed) if padded else packed
        return inputs

    return make


def _work(inputs: Inputs, products: int, passes: int) -> Work:
    """``products`` matrix products over all pairs of valid tokens, causal or not, and ``passes`` over q."""
    query, key, value = inputs["query"], inputs["key"], inputs["value"]
    pairs = int((inputs["query_layout"].lengths.cpu() * inputs["key_layout"].lengths.cpu()).sum())
    flops = 2 * products * pairs * query.shape[-2] * query.shape[-1]
    return Work(bytes=passes * (query.nbytes + (key.nbytes + value.nbytes) // 2), flops=flops)


SPEC = Spec(
    name="attention",
    op=attention,
    reference=attention_reference,
    cases=(
        Case("causal, dropout", _sequences([7, 0, 18], heads=3, head_dim=24, causal=True, rate=0.3)),
        Case("packed", _sequences([5, 1, 9], heads=2, head_dim=24)),
        Case("longer than a block", _sequences([70, 0, 130], heads=1, head_dim=16)),
        Case("causal, longer than a block", _sequences([130, 65], heads=1, head_dim=16, causal=True, rate=0.1)),
        Case("cross", _sequences([7, 3], [40, 8], heads=2, head_dim=96)),
        Case("cross, dropout", _sequences([7, 3], [70, 8], heads=2, head_dim=16, rate=0.5)),
        Case("queries without keys, keys without queries", _sequences([4, 0, 2], [0, 3, 5], heads=2, head_dim=8)),
        Case("padded", _sequences([5, 1, 9], heads=2, head_dim=24, padded=True)),
        Case("a padded sequence with no key", _sequences([4, 0], heads=2, head_dim=8, padded=True)),
        Case("no token", _sequences([0, 0], heads=2, head_dim=8)),
        Case("stage 1, encoder", _sequences([150] * 512, heads=8, head_dim=96), paper=True),
        Case("stage 1, decoder", _sequences([750] * 128, heads=8, head_dim=96), paper=True),
        Case("stage 2, audio", _sequences([512] * 256, heads=8, head_dim=96), paper=True),
        Case("stage 2, captions", _sequences([18] * 4096, heads=12, head_dim=64, causal=True, rate=0.1), paper=True),
        Case(
            "stage 2, longest captions",
            _sequences([77] * 999, heads=12, head_dim=64, causal=True, rate=0.1),
            paper=True,
        ),
        Case("stage 2, cross", _sequences([18] * 256, [512] * 256, heads=12, head_dim=64, rate=0.1), paper=True),
    ),
    forward=lambda inputs: _work(inputs, 2, 2),
    backward=lambda inputs: _work(inputs, 5, 4),
    tensor_cores=True,
)
