"""Dropout whose mask is a pure function of its key.

Features: (seed, step, site, sample, position, feature); attention weights: (seed, step, site, query, key), one mask for
all samples and heads. The same token loses the same features packed or padded on the right, in every micro-batching and
in a replayed pass, so recomputation, gradient accumulation and SAM's second pass all see one network.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import backend, counter_rng
from .counter_rng import device_fold, device_random_bits
from .layout import Layout, Packed, Padded, padded_layout
from .spec import Case, Inputs, MakeInputs, Spec, Work
from .triton_runtime import jit, tl


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
    """Zero features of ``x`` ``[B, L, D]`` or ``[T, D]`` with probability ``key.rate``, scale the rest; None: no-op."""
    if key is None or key.rate == 0.0:
        return x
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


def op_arguments(key: DropoutKey | None, layout: Layout | None, device: torch.device) -> OpArguments:
    """Unfold ``key`` and ``layout`` for a torch op; rate 0 without a key."""
    if key is None or key.rate == 0.0:
        return 0.0, [0, 0, 0, 1], None, None, None
    if layout is None:
        raise ValueError("dropout: layout is None, expected the tokens' layout beside a key")
    if key.sample_index.shape != (layout.batch_size,):
        found, expected = list(key.sample_index.shape), [layout.batch_size]
        raise ValueError(f"dropout: sample_index has shape {found}, expected {expected}, the sequences of layout")
    sample_index, integers = key.sample_index.to(device), [key.seed, key.step, key.site]
    if isinstance(layout, Padded):
        return key.rate, [*integers, layout.mask.shape[1]], sample_index, None, None
    return key.rate, [*integers, 1], sample_index, layout.sequence_ids, layout.positions


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


_dispatch = backend.register("dropout", reference=dropout_reference)


def _tokens(lengths: list[int], width: int, rate: float, *, padded: bool = False) -> MakeInputs:
    def make(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Inputs:
        packed = Packed.from_lengths(lengths, device)
        shape = (len(lengths), packed.padded_width, width) if padded else (packed.total, width)
        sample_index = torch.randint(2**40, (len(lengths),), generator=generator).to(device)
        return {
            "x": torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(),
            "key": DropoutKey(rate, 2**40 + 3, 7, sample_index),
            "layout": padded_layout(packed) if padded else packed,
        }

    return make


def _work(inputs: Inputs) -> Work:
    return Work(bytes=2 * inputs["x"].nbytes)


SPEC = Spec(
    name="dropout",
    op=dropout,
    reference=dropout_reference,
    cases=(
        Case("packed", _tokens([5, 0, 9], 48, 0.1)),
        Case("padded", _tokens([5, 0, 9], 48, 0.3, padded=True)),
        Case("captions", _tokens([18] * 4096, 768, 0.1), paper=True),
    ),
    forward=_work,
    backward=_work,
)
