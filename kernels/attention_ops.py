"""The torch ops of :mod:`.attention`: packed sequences, computed by the provider they are told."""

from collections.abc import Sequence as List
from typing import Any

import torch
from torch import Tensor

from .attention_providers.choice import PROVIDERS
from .attention_providers.provider import Sequences
from .library import define

Gradients = tuple[Tensor, Tensor, Tensor]
"""Of query, key and value."""


def attention_fwd(query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Return out, contiguous, and statistics of the softmax; zeros where there is no query or no key at all."""
    *where, provider = arguments
    if not query.numel() or not key.numel():
        out, statistics = _fwd_outputs(query, key, value, *arguments)
        return out.zero_(), statistics.zero_()
    query, key, value = map(_last_contiguous, (query, key, value))
    out, statistics = PROVIDERS[provider].forward(query, key, value, _sequences(*where))
    return out.contiguous(), statistics


def attention_bwd(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, statistics: Tensor, *arguments: Any
) -> Gradients:
    """Return the gradients of query, key and value, contiguous."""
    gradients = _bwd_outputs(d_out, query, key, value, out, statistics, *arguments)
    write_gradients(gradients, d_out, query, key, value, out, statistics, *arguments)
    return gradients


def write_gradients(
    gradients: Gradients,
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    statistics: Tensor,
    *arguments: Any,
) -> None:
    """Write what :func:`attention_bwd` returns into tensors that are there; their rows and heads may be strided."""
    *where, provider = arguments
    if not query.numel() or not key.numel():
        for gradient in gradients:
            gradient.zero_()
        return
    query, key, value = map(_last_contiguous, (query, key, value))
    sequences = _sequences(*where)
    PROVIDERS[provider].backward(
        d_out.contiguous(), query, key, value, out.contiguous(), statistics, sequences, gradients
    )


def _sequences(
    query_offsets: Tensor,
    key_offsets: Tensor,
    max_query: int,
    max_key: int,
    causal: bool,
    dropout_rate: float,
    dropout_key: List[int],
) -> Sequences:
    return Sequences(query_offsets, key_offsets, max_query, max_key, causal, dropout_rate, tuple(dropout_key))


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _fwd_outputs(query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    queries, heads, _ = query.shape
    statistics_shape = PROVIDERS[arguments[-1]].statistics_shape(heads, queries)
    return query.new_empty(query.shape), query.new_empty(statistics_shape, dtype=torch.float32)


def _bwd_outputs(d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_rest: Any) -> Gradients:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


_ARGUMENTS = (
    "Tensor query_offsets, Tensor key_offsets, SymInt max_query, SymInt max_key, bool causal, float dropout_rate, "
    "SymInt[] dropout_key, str provider"
)
attention_fwd_op = define(
    f"attention_fwd(Tensor query, Tensor key, Tensor value, {_ARGUMENTS}) -> (Tensor, Tensor)",
    attention_fwd,
    _fwd_outputs,
)
attention_bwd_op = define(
    "attention_bwd(Tensor d_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor statistics, "
    f"{_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    attention_bwd,
    _bwd_outputs,
)
