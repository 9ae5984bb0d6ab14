"""FlashAttention 2 as PyTorch ships it.

The ``aten`` ops are called, not ``torch.nn.attention.varlen.varlen_attn`` above them: they have an explicit backward,
and what is passed here is the same from 2.11 to 2.13, where ``varlen_attn`` traded ``is_causal`` for ``window_size``.
cuDNN, which ``scaled_dot_product_attention`` may choose, is not reached this way. Never run by us on a GPU yet.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .provider import Problem, Provider, Sequences, flash_refusal


class TorchFlash(Provider):
    """``aten::_flash_attention_forward`` and ``aten::_flash_attention_backward``."""

    name = "torch"

    def unavailable(self) -> str | None:
        """Say why this build of PyTorch has no such kernels."""
        if not torch.backends.cuda.is_flash_attention_available():
            return f"is not in this build of torch, {torch.__version__}"
        return None

    def refusal(self, problem: Problem) -> str | None:
        """Say what it does not take."""
        return flash_refusal(problem)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Call the forward op."""
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(query, key, value, *_lengths(sequences)),
            *(0.0, sequences.causal, False),
            scale=query.shape[-1] ** -0.5,
        )
        return out, lse

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
        """Call the backward op, which allocates, and copy."""
        seed, unused = query.new_zeros(2, dtype=torch.uint64), query.new_empty(0)
        with deterministic():
            found = torch.ops.aten._flash_attention_backward(
                *(d_out, query, key, value, out, statistics, *_lengths(sequences)),
                *(0.0, sequences.causal, seed, unused),
                scale=query.shape[-1] ** -0.5,
            )
        for gradient, computed in zip(gradients, found, strict=True):
            gradient.copy_(computed)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Let PyTorch choose its deterministic kernels in the body: the backward op has no argument for it.

    Memory it allocates is not filled, which that mode would do besides.
    """
    mode, warn_only = torch._C._get_deterministic_algorithms(), torch._C._get_deterministic_algorithms_warn_only()
    fill = torch._C._get_deterministic_fill_uninitialized_memory()
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    torch._C._set_deterministic_fill_uninitialized_memory(False)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)
        torch._C._set_deterministic_fill_uninitialized_memory(fill)


def _lengths(sequences: Sequences) -> tuple[Tensor, Tensor, int, int]:
    return sequences.query_offsets, sequences.key_offsets, sequences.max_query, sequences.max_key
