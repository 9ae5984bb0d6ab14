"""Dropout whose mask is a pure function of its key.

Features: (seed, step, site, sample, position, feature); attention weights: (seed, step, site, query, key), one mask for
all samples and heads. The same token loses the same features packed or padded on the right, in every micro-batching and
in a replayed pass, so recomputation, gradient accumulation and SAM's second pass all see one network.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import backend, counter_rng
from .layout import Layout


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
    kept = bits >= int(rate * 2**32)
    return kept.to(dtype) / (1.0 - rate)


_dispatch = backend.register("dropout", reference=dropout_reference)
