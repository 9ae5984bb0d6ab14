"""What a provider of packed attention is: when it can serve, forward, backward."""

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

HALF_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Problem:
    """What a provider is chosen by. ``capability`` is the GPU's compute capability, (0, 0) off CUDA."""

    device_type: str
    capability: tuple[int, int]
    dtype: torch.dtype
    head_dim: int
    causal: bool
    dropout: bool

    def __str__(self) -> str:
        """Say it in words."""
        words = [f"head dim {self.head_dim}", str(self.dtype).removeprefix("torch."), self.device_type]
        return ", ".join([*words, *(["causal"] if self.causal else []), *(["dropout"] if self.dropout else [])])


@dataclass(frozen=True)
class Sequences:
    """Where the packed sequences lie, and how they attend.

    ``query_offsets`` and ``key_offsets`` int32 ``[B + 1]``, ``max_query`` and ``max_key`` at least the longest
    lengths. ``dropout_key`` holds seed, step and site of the mask all sequences and heads share; rate 0 is none.
    """

    query_offsets: Tensor
    key_offsets: Tensor
    max_query: int
    max_key: int
    causal: bool
    dropout_rate: float
    dropout_key: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of sequences B."""
        return self.query_offsets.shape[0] - 1


class Provider(ABC):
    """One implementation of softmax(q kᵀ / sqrt(d)) v and its gradient, for each sequence and head.

    ``query`` ``[Tq, H, d]``, ``key`` and ``value`` ``[Tk, H, d]``, the last dimension contiguous; neither is empty.
    """

    name: str

    @abstractmethod
    def unavailable(self) -> str | None:
        """Say why this installation does not have it, or None."""

    @abstractmethod
    def refusal(self, problem: Problem) -> str | None:
        """Say why it cannot serve ``problem`` where it is available, or None."""

    def statistics_shape(self, heads: int, queries: int) -> tuple[int, ...]:
        """Return the shape of what backward needs of the softmax, float32: of the log of its sums, where not told."""
        return heads, queries

    @abstractmethod
    def forward(self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Return out ``[Tq, H, d]`` and what backward needs of the softmax, of :meth:`statistics_shape`."""

    @abstractmethod
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
        """Write d query, d key and d value into ``gradients``, whose rows and heads may be strided."""


def flash_refusal(problem: Problem, *, least_capability: int = 8, largest_head_dim: int = 256) -> str | None:
    """Say what FlashAttention's CUDA kernels do not take in ``problem``, or None."""
    if problem.device_type != "cuda":
        return f"needs CUDA, not {problem.device_type}"
    if problem.capability[0] < least_capability:
        return f"needs compute capability {least_capability}.0, this GPU has {'.'.join(map(str, problem.capability))}"
    if problem.dropout:
        return "draws a mask of its own for every head, where one replayable mask is shared by all"
    if problem.dtype not in HALF_DTYPES:
        return f"takes float16 and bfloat16, not {str(problem.dtype).removeprefix('torch.')}"
    if problem.head_dim > largest_head_dim or problem.head_dim % 8:
        return f"takes head dims up to {largest_head_dim} that are multiples of 8, not {problem.head_dim}"
    return None


def import_guarded(name: str) -> ModuleType | str:
    """Import a module, or say in a line why it cannot be: a broken installation raises anything."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        reason = str(error).strip().splitlines()
        return f"cannot be imported ({name}): {type(error).__name__}: {reason[0] if reason else 'no reason given'}"
