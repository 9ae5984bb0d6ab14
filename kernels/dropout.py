"""Dropout whose mask is a pure function of its key.

Features: (seed, step, site, sample, position, feature); attention weights: (seed, step, site, query, key), one mask for
all samples and heads. The same token loses the same features packed or padded on the right, in every micro-batching and
in a replayed pass, so recomputation, gradient accumulation and SAM's second pass all see one network.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import backend, counter_rng
from .counter_rng import device_fold, device_random_bits, device_root_key
from .layout import Layout, Padded
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


KernelArguments = tuple[float, list[int], Tensor | None, Tensor | None, Tensor | None]
"""What an op with dropout inside takes: rate, [seed, step, site, row_length], sample_index, sequence_ids, positions.

``row_length`` is the slots of a sequence in the padded layout; in the packed one two tensors say where a row belongs.
"""


def kernel_arguments(key: DropoutKey | None, layout: Layout | None, device: torch.device) -> KernelArguments:
    """Unfold ``key`` and ``layout`` for :func:`device_kept`; rate 0 without a key."""
    if key is None or key.rate == 0.0:
        return 0.0, [0, 0, 0, 1], None, None, None
    if layout is None:
        raise ValueError("dropout: layout is None, expected the tokens' layout beside a key")
    sample_index = key.sample_index.to(device)
    if isinstance(layout, Padded):
        return key.rate, [key.seed, key.step, key.site, layout.mask.shape[1]], sample_index, None, None
    return key.rate, [key.seed, key.step, key.site, 1], sample_index, layout.sequence_ids, layout.positions


@jit
def device_kept(row, column, in_row, sample_index, sequence_ids, positions, row_length, seed, step, site, threshold):
    """Which features ``[rows, columns]`` stay: the mask of :func:`dropout_reference` in a kernel."""
    if sequence_ids is None:
        sequence, position = row // row_length, row % row_length
    else:
        sequence = tl.load(sequence_ids + row, in_row, other=0)
        position = tl.load(positions + row, in_row, other=0)
    sample = tl.load(sample_index + sequence, in_row, other=0)
    site_key = device_fold(device_root_key(seed, step), site.to(tl.int64))
    token_key = device_fold(device_fold(site_key, sample.to(tl.int64)), position.to(tl.int64))
    return device_random_bits(token_key[:, None], column[None, :]) >= threshold.to(tl.uint32)


_dispatch = backend.register("dropout", reference=dropout_reference)
