"""Dropout whose mask is a pure function of its key.

Features: (seed, step, site, sample, position, feature); attention weights: (seed, step, site, query, key), one mask for
all samples and heads. The same token loses the same features packed or padded on the right, in every micro-batching and
in a replayed pass, so recomputation, gradient accumulation and SAM's second pass all see one network.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backend, counter_rng
from .checks import check_dtype, check_layout
from .counter_rng import device_fold, device_random_bits
from .layout import Layout, Packed, Padded, padded_layout
from .library import define
from .spec import Case, Inputs, MakeInputs, Spec, Work, draw_normal
from .triton_runtime import cdiv, jit, launch, next_power_of_two, tl


@dataclass(frozen=True)
class DropoutKey:
    """Names the masks of one forward pass: ``rate``, run ``seed``, optimiser ``step``, ``sample_index`` ``[B]``.

    ``site`` tells the places in the network apart.
    """

    rate: float
    seed: int
    step: int
    sample_index: Tensor
    site: int = 0

    def __post_init__(self) -> None:
        """Refuse a rate that would drop everything."""
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"dropout: rate is {self.rate}, expected 0 <= rate < 1")

    def at(self, site: int) -> "DropoutKey":
        """Return the key of another place in the network: sub-site ``site`` of this one (up to 4096 of them)."""
        return replace(self, site=self.site * 4096 + site + 1)

    def site_key(self, device: torch.device) -> Tensor:
        """32-bit key of this site, 0-d."""
        return counter_rng.fold(counter_rng.root_key(self.seed, self.step, device), self.site)


def dropout(x: Tensor, key: DropoutKey | None, layout: Layout) -> Tensor:
    """Zero features of ``x`` ``[B, L, D]`` or ``[T, D]`` with probability ``key.rate``, scale the rest; None: no-op.

    Fused, no mask is kept for backward, which draws it again. Raises ValueError on an ``x`` or a ``key`` that does not
    fit ``layout`` and, fused, on a dtype the kernel does not take.
    """
    if key is None or key.rate == 0.0:
        return x
    check_layout("dropout", "x", x, layout)
    _check_samples(key, layout)
    return _dispatch(x, key, layout)


def dropout_reference(x: Tensor, key: DropoutKey, layout: Layout) -> Tensor:
    """Compute :func:`dropout` in PyTorch integers."""
    sample_key = counter_rng.fold(key.site_key(x.device), key.sample_index.to(x.device))
    token_key = counter_rng.fold(layout.spread(sample_key), layout.positions)
    features = torch.arange(x.shape[-1], device=x.device)
    return x * _scale(counter_rng.random_bits(token_key[..., None], features), key.rate, x.dtype)


def attention_dropout(weights: Tensor, key: DropoutKey | None) -> Tensor:
    """Dropout of attention ``weights`` ``[..., Lq, Lk]`` with one mask for all clips and heads.

    This is flax's ``broadcast_dropout=True``, which the authors' text encoder trains with.
    """
    if key is None or key.rate == 0.0:
        return weights
    queries, keys = (torch.arange(n, device=weights.device) for n in weights.shape[-2:])
    query_key = counter_rng.fold(key.site_key(weights.device), queries)
    return weights * _scale(counter_rng.random_bits(query_key[:, None], keys), key.rate, weights.dtype)


def _scale(bits: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
    kept = bits >= threshold(rate)
    return kept.to(dtype) / (1.0 - rate)


def threshold(rate: float) -> int:
    """Random words below this are dropped."""
    return int(rate * 2**32)


OpArguments = tuple[float, list[int], Tensor | None, Tensor | None, Tensor | None]
"""What a torch op with dropout inside takes: rate, [seed, step, site, slots of a padded sequence], sample_index,
sequence_ids, positions. The last two say where a packed row belongs."""

OP_SCHEMA = "float rate, SymInt[] integers, Tensor? sample_index, Tensor? sequence_ids, Tensor? positions"
"""The same in the op's schema."""


def op_arguments(key: DropoutKey | None, layout: Layout | None, device: torch.device) -> OpArguments:
    """Unfold ``key`` and ``layout`` for a torch op; rate 0 without a key."""
    if key is None or key.rate == 0.0:
        return 0.0, [0, 0, 0, 1], None, None, None
    if layout is None:
        raise ValueError("dropout: layout is None, expected the tokens' layout beside a key")
    _check_samples(key, layout)
    sample_index, integers = key.sample_index.to(device).contiguous(), [key.seed, key.step, key.site]
    if isinstance(layout, Padded):
        return key.rate, [*integers, layout.mask.shape[1]], sample_index, None, None
    return key.rate, [*integers, 1], sample_index, layout.sequence_ids, layout.positions


def _check_samples(key: DropoutKey, layout: Layout) -> None:
    if key.sample_index.shape != (layout.batch_size,):
        found, expected = list(key.sample_index.shape), [layout.batch_size]
        raise ValueError(f"dropout: sample_index has shape {found}, expected {expected}, the sequences of layout")


def kernel_arguments(
    rate: float,
    integers: list[int],
    sample_index: Tensor | None,
    sequence_ids: Tensor | None,
    positions: Tensor | None,
) -> tuple[Any, ...]:
    """Return the scale of what stays, then the arguments of :func:`device_kept` after the rows, from an op's."""
    *key, slots = integers
    site_key = counter_rng.host_key(*key)
    limit = counter_rng.signed32(threshold(rate))
    return 1.0 / (1.0 - rate), limit, slots, site_key, sample_index, sequence_ids, positions


@jit
def device_kept(row, column, in_row, threshold, slots, site_key, sample_index, sequence_ids, positions):
    """Which features ``[rows, columns]`` stay: the mask of :func:`dropout_reference` in a kernel."""
    if sequence_ids is None:
        sequence, position = row // slots, row % slots
    else:
        sequence = tl.load(sequence_ids + row, in_row, other=0)
        position = tl.load(positions + row, in_row, other=0)
    sample = tl.load(sample_index + sequence, in_row, other=0)
    sample_key = device_fold(site_key.to(tl.uint32), sample.to(tl.int64))
    token_key = device_fold(sample_key, position.to(tl.int64))
    return device_random_bits(token_key[:, None], column[None, :]) >= threshold.to(tl.uint32)


@jit(do_not_specialize=["rows", "threshold", "slots", "site_key"])
def dropout_kernel(
    x,  # [rows, D]
    out,  # [rows, D]
    rows,
    keep_scale,
    threshold,
    slots,  # of a padded sequence
    site_key,
    sample_index,  # int64 [sequences]
    sequence_ids,  # int64 [rows] or None: padded
    positions,  # int64 [rows] or None: padded
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Scale what stays of BLOCK_D features of BLOCK_ROWS rows: of x, or of the gradient of what came out."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_row = row < rows
    mask = in_row[:, None] & (column < D)[None, :]
    offsets = row.to(tl.int64)[:, None] * D + column[None, :]
    kept = device_kept(row, column, in_row, threshold, slots, site_key, sample_index, sequence_ids, positions)
    value = tl.load(x + offsets, mask & kept, other=0.0).to(tl.float32)
    tl.store(out + offsets, (value * keep_scale).to(out.dtype.element_ty), mask)


def dropout_rows(x: Tensor, *arguments: Any) -> Tensor:
    """Launch the kernel on contiguous ``[rows, D]``."""
    out, (rows, width) = torch.empty_like(x), x.shape
    columns = min(next_power_of_two(width), 256)
    blocks = {"BLOCK_D": columns, "BLOCK_ROWS": 2048 // columns}
    grid = cdiv(rows, blocks["BLOCK_ROWS"]), cdiv(width, columns)
    launch(dropout_kernel, grid, x, out, rows, *kernel_arguments(*arguments), D=width, **blocks)
    return out


dropout_rows_op = define(
    f"dropout_rows(Tensor x, {OP_SCHEMA}) -> Tensor", dropout_rows, lambda x, *_: torch.empty_like(x)
)


class DropoutFunction(torch.autograd.Function):
    """Joins the op to itself: the gradient loses the features that were lost; rows ``[rows, D]`` in and out."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *arguments: Any) -> Tensor:
        """Run forward and keep what names the mask."""
        ctx.rate, ctx.integers, *tensors = arguments
        ctx.save_for_backward(*tensors)
        return dropout_rows_op(rows, *arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override]
        """Draw the mask again."""
        d_rows = dropout_rows_op(gradients[0].contiguous(), ctx.rate, ctx.integers, *ctx.saved_tensors)
        return d_rows, *[None] * 5


def _dropout_cuda(x: Tensor, key: DropoutKey, layout: Layout) -> Tensor:
    check_dtype("dropout", "x", x)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return DropoutFunction.apply(rows, *op_arguments(key, layout, x.device)).view(x.shape)


_dispatch = backend.register("dropout", reference=dropout_reference, fused={"cuda": _dropout_cuda})


def _tokens(lengths: list[int], width: int, rate: float, *, padded: bool = False) -> MakeInputs:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        packed = Packed.from_lengths(lengths, device)
        shape = (len(lengths), packed.padded_width, width) if padded else (packed.total, width)
        sample_index = torch.randint(2**40, (len(lengths),), generator=generator).to(device)
        return {
            "x": draw_normal(shape, generator, device, dtype),
            "key": DropoutKey(rate, 2**40 + 3, 7, sample_index),
            "layout": padded_layout(packed) if padded else packed,
        }

    return make


def _work(inputs: Inputs) -> Work:
    return Work(bytes=2 * inputs["x"].nbytes)


def torch_dropout(x: Tensor, key: DropoutKey, layout: Layout) -> Tensor:
    """Drop out by PyTorch's own kernel: another mask each call, stored for backward. A rival for benches."""
    return F.dropout(x, key.rate)


def without_dropout(inputs: Inputs) -> Inputs:
    """Return a case's inputs at rate 0, where a rival with masks of its own must agree."""
    return {n: replace(value, rate=0.0) if isinstance(value, DropoutKey) else value for n, value in inputs.items()}


SPEC = Spec(
    name="dropout",
    op=dropout,
    reference=dropout_reference,
    cases=(
        Case("packed", _tokens([5, 0, 9], 48, 0.1)),
        Case("padded", _tokens([5, 0, 9], 48, 0.3, padded=True)),
        Case("more rows and columns than a block", _tokens([30, 1, 7], 300, 0.5)),
        Case("one feature", _tokens([3], 1, 0.5)),
        Case("no token", _tokens([0, 0], 48, 0.1)),
        Case("captions", _tokens([18] * 4096, 768, 0.1), paper=True),
    ),
    forward=_work,
    backward=_work,
    rivals={"torch": torch_dropout},
    rivals_checked_on=without_dropout,
)
