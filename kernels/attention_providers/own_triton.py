"""Our own Triton kernels: every dtype the others take and float32, and the shared, replayable dropout mask."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import counter_rng
from ..attention_triton import (
    MAX_HEAD_DIM,
    attention_bwd_key_kernel,
    attention_bwd_query_kernel,
    attention_fwd_kernel,
)
from ..checks import FUSED_DTYPES
from ..dropout import threshold
from ..triton_runtime import HAS_TRITON, INTERPRETING, cdiv, launch, next_power_of_two
from .provider import Problem, Provider, Sequences

_LARGEST_BLOCK = 128 if INTERPRETING else 64  # in the interpreter an operation costs the same, whatever its size
_LARGEST_BLOCK_32_BIT = 128 if INTERPRETING else 32  # of heads 128 wide 64 would not fit an A100's shared memory


class OwnTriton(Provider):
    """Launches the kernels of :mod:`~cacophony.kernels.attention_triton`; the same call gives the same bits."""

    name = "triton"

    def unavailable(self) -> str | None:
        """Say so where Triton is missing."""
        return None if HAS_TRITON else "is not installed"

    def refusal(self, problem: Problem) -> str | None:
        """Say what the kernels do not take."""
        if problem.device_type not in ("cuda", "meta") and not (problem.device_type == "cpu" and INTERPRETING):
            return f"needs CUDA, not {problem.device_type}"
        if problem.device_type == "cuda" and problem.capability[0] < 8:
            return f"needs compute capability 8.0, this GPU has {'.'.join(map(str, problem.capability))}"
        if problem.dtype not in FUSED_DTYPES:
            return f"takes float32, bfloat16 and float16, not {str(problem.dtype).removeprefix('torch.')}"
        if problem.head_dim > MAX_HEAD_DIM:
            return f"takes head dims up to {MAX_HEAD_DIM}, not {problem.head_dim}"
        return None

    def statistics_shape(self, heads: int, queries: int) -> tuple[int, ...]:
        """Return that of each query's largest score, and of one over the sum of its exponentials."""
        return heads, 2, queries

    def forward(self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Launch the forward kernel."""
        queries, heads, head_dim = query.shape
        out = query.new_empty(query.shape)
        statistics = query.new_empty(self.statistics_shape(heads, queries), dtype=torch.float32)
        tiles = _tiles(query, key, sequences)
        blocks = cdiv(sequences.max_query, tiles["BLOCK_Q"])
        launch(
            attention_fwd_kernel,
            (blocks * heads * sequences.count,),
            *_operands(query, key, value, sequences),
            *(out, statistics, queries, heads, blocks, *_numbers(head_dim, sequences)),
            **tiles,
            num_warps=_warps(tiles, 1, query.itemsize),
        )
        return out, statistics

    def backward(
        self,
        d_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        statistics: Tensor,
        sequences: Sequences,
        gradients: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Launch both backward kernels, which write into ``gradients``."""
        queries, heads, head_dim = query.shape
        d_query, d_key, d_value = gradients
        delta = query.new_empty((heads, queries), dtype=torch.float32)
        operands, numbers = _operands(query, key, value, sequences), _numbers(head_dim, sequences)
        tiles = _tiles(query, key, sequences)
        blocks = cdiv(sequences.max_query, tiles["BLOCK_Q"])
        launch(
            attention_bwd_query_kernel,
            (blocks * heads * sequences.count,),
            *(d_out, out, *operands, statistics, delta, d_query, *d_query.stride()[:2]),
            *(queries, heads, blocks, *numbers),
            **tiles,
            num_warps=_warps(tiles, 1, query.itemsize),
        )
        blocks = cdiv(sequences.max_key, tiles["BLOCK_K"])
        launch(
            attention_bwd_key_kernel,
            (blocks * heads * sequences.count,),
            *(d_out, *operands, statistics, delta, d_key, *d_key.stride()[:2], d_value, *d_value.stride()[:2]),
            *(queries, heads, blocks, *numbers),
            **tiles,
            num_warps=_warps(tiles, 2, query.itemsize),
        )


def _operands(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> tuple[Any, ...]:
    strides = (stride for tensor in (query, key, value) for stride in tensor.stride()[:2])
    return (query, key, value, sequences.query_offsets, sequences.key_offsets, *strides)


def _numbers(head_dim: int, sequences: Sequences) -> tuple[float, float, int, int]:
    rate = sequences.dropout_rate
    site_key = counter_rng.host_key(*sequences.dropout_key) if rate else 0
    scale = math.log2(math.e) / math.sqrt(head_dim)
    return scale, 1.0 / (1.0 - rate), counter_rng.signed32(threshold(rate)), site_key


def _tiles(query: Tensor, key: Tensor, sequences: Sequences) -> dict[str, Any]:
    """Blocks as long as the mean sequence, so that the many short ones do not pay for the longest; 16 is the least."""
    head_dim, sizes = query.shape[2], []
    largest = _LARGEST_BLOCK if query.itemsize <= 2 else _LARGEST_BLOCK_32_BIT
    for tokens, longest in ((query.shape[0], sequences.max_query), (key.shape[0], sequences.max_key)):
        typical = min(cdiv(tokens, sequences.count), longest)
        sizes.append(min(max(next_power_of_two(typical), 16), largest))
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(next_power_of_two(head_dim), 16),
        "BLOCK_Q": sizes[0],
        "BLOCK_K": sizes[1],
        "CAUSAL": sequences.causal,
        "DROPOUT": sequences.dropout_rate > 0.0,
    }


def _warps(tiles: dict[str, Any], sums: int, itemsize: int) -> int:
    """As many as the tiles and the ``sums`` a program keeps need registers, where products of 32 bits hold operands."""
    size = sums * tiles["BLOCK_Q"] * tiles["BLOCK_K"] * tiles["BLOCK_D"] * (1 if itemsize <= 2 else 4)
    return 8 if size >= 2**19 else 4 if size >= 2**17 else 2
