"""How the tokens of a batch of sequences lie in memory: padded ``[B, L, ...]`` or packed ``[T, ...]``.

Every op takes a layout and gives the same numbers for the valid tokens in both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

LayoutName = Literal["padded", "packed"]

Value = TypeVar("Value")


class cached_property(Generic[Value]):
    """``functools.cached_property`` without the lock it has in Python 3.11, which ``torch.compile`` cannot trace."""

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self.compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> Value:
        """Compute the value and leave it in the instance, where it hides this descriptor."""
        value = self.compute(instance)
        instance.__dict__[self.name] = value
        return value


@dataclass(frozen=True)
class Padded:
    """Tokens ``[B, L, ...]``; ``mask`` bool ``[B, L]`` is True where a token is real."""

    mask: Tensor

    @property
    def batch_size(self) -> int:
        """Number of sequences B."""
        return self.mask.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Valid tokens of each sequence, int64 ``[B]``."""
        return self.mask.sum(dim=1)

    @cached_property
    def positions(self) -> Tensor:
        """Slot number of every token in its sequence, int64 ``[B, L]``."""
        return torch.arange(self.mask.shape[1], device=self.mask.device).expand_as(self.mask)

    @cached_property
    def valid(self) -> Tensor:
        """True for real tokens, bool ``[B, L]``."""
        return self.mask

    def spread(self, per_sequence: Tensor) -> Tensor:
        """Give every token the value of its sequence: ``[B]`` to ``[B, L]``."""
        return per_sequence[:, None].expand_as(self.mask)


@dataclass(frozen=True)
class Packed:
    """Tokens ``[T, ...]``, sequence after sequence: sequence b is ``cu_seqlens[b] : cu_seqlens[b + 1]``.

    ``cu_seqlens`` is int32 ``[B + 1]`` on the tokens' device, ``max_len`` at least the longest length, ``total`` = T;
    both are known on the host, so that no shape ever has to be read back from the device. What the host can see is
    checked, :meth:`check` looks at the rest: ValueError where the three do not fit. Sequences may be empty.
    """

    cu_seqlens: Tensor
    max_len: int
    total: int

    def __post_init__(self) -> None:
        """Check what can be checked without waiting for the device."""
        if self.cu_seqlens.dtype != torch.int32 or self.cu_seqlens.dim() != 1 or not len(self.cu_seqlens):
            found = f"{self.cu_seqlens.dtype} {list(self.cu_seqlens.shape)}"
            raise ValueError(f"Packed: cu_seqlens is {found}, expected torch.int32 [sequences + 1]")
        if not 0 <= self.total < 2**31:
            raise ValueError(f"Packed: total is {self.total}, expected 0 to 2**31 - 1, which int32 cu_seqlens can hold")
        if self.cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check()

    def check(self) -> None:
        """Raise ValueError where ``cu_seqlens`` is no partition of ``total`` tokens or a sequence exceeds ``max_len``.

        Reads it back to the host: for layouts that come from elsewhere and already lie on a device.
        """
        offsets = self.cu_seqlens.cpu()
        lengths = offsets.diff()
        first, last = int(offsets[0]), int(offsets[-1])
        if first != 0 or last != self.total:
            raise ValueError(f"Packed: cu_seqlens goes from {first} to {last}, expected 0 to total, {self.total}")
        if bool((lengths < 0).any()):
            raise ValueError(f"Packed: cu_seqlens decreases after entry {int((lengths < 0).nonzero()[0])}")
        longest = int(lengths.max()) if len(lengths) else 0
        if self.max_len < longest:
            raise ValueError(f"Packed: max_len is {self.max_len}, expected at least {longest}, the longest sequence")

    @classmethod
    def from_lengths(cls, lengths: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> "Packed":
        """Build the layout of sequences with these ``lengths`` (host integers)."""
        host_lengths = torch.as_tensor(lengths, dtype=torch.int64, device="cpu")
        if bool((host_lengths < 0).any()):
            raise ValueError(f"Packed: lengths holds {int(host_lengths.min())}, expected no negative length")
        cu_seqlens = torch.zeros(len(host_lengths) + 1, dtype=torch.int64)
        torch.cumsum(host_lengths, 0, out=cu_seqlens[1:])
        max_len = int(host_lengths.max()) if len(host_lengths) else 0
        return cls(cu_seqlens.to(torch.int32).to(device, non_blocking=True), max_len, int(cu_seqlens[-1]))

    @property
    def batch_size(self) -> int:
        """Number of sequences B."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, int64 ``[B]``."""
        return self.cu_seqlens.diff().long()

    @property
    def host_lengths(self) -> list[int] | None:
        """Tokens of each sequence where the host has them: not on a device, nor in a graph for many batches."""
        if self.cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        return self.cu_seqlens.diff().tolist()

    @cached_property
    def sequence_ids(self) -> Tensor:
        """Number of the sequence every token belongs to, int64 ``[T]``."""
        ids = torch.arange(self.batch_size, device=self.cu_seqlens.device)
        return torch.repeat_interleave(ids, self.lengths, output_size=self.total)

    @cached_property
    def positions(self) -> Tensor:
        """Position of every token in its sequence, int64 ``[T]``."""
        tokens = torch.arange(self.total, device=self.cu_seqlens.device)
        return tokens - self.cu_seqlens[self.sequence_ids]

    @cached_property
    def valid(self) -> Tensor:
        """True for real tokens, bool ``[T]``: all of them."""
        return torch.ones(self.total, dtype=torch.bool, device=self.cu_seqlens.device)

    @property
    def padded_width(self) -> int:
        """Slots L of the padded layout of these sequences; at least one, so that no batch is empty."""
        return max(self.max_len, 1)

    @cached_property
    def padded_slots(self) -> Tensor:
        """Row of every token in the flattened padded layout ``[B * L]``, int64 ``[T]``."""
        return self.sequence_ids * self.padded_width + self.positions

    def spread(self, per_sequence: Tensor) -> Tensor:
        """Give every token the value of its sequence: ``[B]`` to ``[T]``."""
        return per_sequence[self.sequence_ids]


Layout = Padded | Packed


@dataclass(frozen=True)
class PatchPositions:
    """Where patches lie in their spectrogram: ``time`` (units of 16 frames) and ``freq`` (units of 16 mel bands).

    Both int64, ``[B, L]`` or ``[T]`` as ``layout`` says; padding slots hold 0.
    """

    time: Tensor
    freq: Tensor
    layout: Layout


@dataclass(frozen=True)
class Patches:
    """Patches of log-mel: ``values`` ``[B, L, 256]`` or ``[T, 256]`` (pixel = 16 * frame + band) and where they lie."""

    values: Tensor
    positions: PatchPositions

    @property
    def layout(self) -> Layout:
        """Layout of values and positions."""
        return self.positions.layout

    @property
    def device(self) -> torch.device:
        """Device of values and positions."""
        return self.values.device


def padded_layout(packed: Packed) -> Padded:
    """Return the left-aligned padded layout of the same sequences."""
    slots = torch.arange(packed.padded_width, device=packed.cu_seqlens.device)
    return Padded(slots[None, :] < packed.lengths[:, None])


def packed_layout(padded: Padded) -> Packed:
    """Return the packed layout of a padded batch's valid tokens; reads the lengths back to the host."""
    return Packed.from_lengths(padded.lengths.cpu(), padded.mask.device)


def pad(tokens: Tensor, packed: Packed) -> Tensor:
    """Lay packed ``[T, ...]`` tokens out as ``[B, L, ...]``, zero in the padding slots; differentiable."""
    flat = tokens.new_zeros((packed.batch_size * packed.padded_width, *tokens.shape[1:]))
    flat = flat.index_copy(0, packed.padded_slots, tokens)
    return flat.unflatten(0, (packed.batch_size, packed.padded_width))


def unpad(tokens: Tensor, packed: Packed) -> Tensor:
    """Undo :func:`pad`: take the tokens of ``packed`` out of ``[B, L, ...]``: ``[T, ...]``; differentiable."""
    return tokens.flatten(0, 1).index_select(0, packed.padded_slots)


def pack(tokens: Tensor, padded: Padded) -> Tensor:
    """Take the valid tokens of ``[B, L, ...]``, wherever its mask has them: ``[T, ...]``; differentiable."""
    return tokens.flatten(0, 1).index_select(0, padded.mask.flatten().nonzero()[:, 0])
