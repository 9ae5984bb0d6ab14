"""Packed sequences padded in groups of like length, so that what is written for padded tokens serves them too.

Padded all together, ragged sequences are mostly padding, which attention pays for by the square; one at a time, short
ones are many small calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .layout import Packed, Padded, pad, padded_layout, unpad

_STEP = 64  # lengths from 64 n + 1 to 64 (n + 1) are alike


@dataclass(frozen=True)
class LengthGroups:
    """The sequences of ``packed``, which have these ``lengths``, in ``groups`` of their numbers.

    A list holds one entry a group, of which B and L are the number of its sequences and the longest's length.
    """

    packed: Packed
    lengths: Sequence[int]
    groups: Sequence[Sequence[int]]

    def pad(self, tokens: Tensor) -> list[Tensor]:
        """Lay packed ``tokens`` ``[T, ...]`` out as ``[B, L, ...]``, zero in the padding slots; differentiable."""
        sequences = tokens.split(self.lengths)
        return [pad_sequence([sequences[number] for number in group], batch_first=True) for group in self.groups]

    def layouts(self) -> list[Padded]:
        """Return the layouts of what :meth:`pad` returns."""
        return [Padded(mask) for mask in self.pad(self.packed.valid)]

    def unpad(self, padded: Sequence[Tensor]) -> Tensor:
        """Undo :meth:`pad`; differentiable."""
        sequences = {
            number: row[: self.lengths[number]]
            for group, rows in zip(self.groups, padded, strict=True)
            for number, row in zip(group, rows.unbind(), strict=True)
        }
        return torch.cat([sequences[number] for number in range(len(self.lengths))])


@dataclass(frozen=True)
class OneGroup:
    """All sequences of ``packed`` in one group, as wide as its ``max_len``: nothing else need be known of them."""

    packed: Packed

    def pad(self, tokens: Tensor) -> list[Tensor]:
        """Lay packed ``tokens`` out, see :meth:`LengthGroups.pad`."""
        return [pad(tokens, self.packed)]

    def layouts(self) -> list[Padded]:
        """Return the layout of what :meth:`pad` returns."""
        return [padded_layout(self.packed)]

    def unpad(self, padded: Sequence[Tensor]) -> Tensor:
        """Undo :meth:`pad`."""
        return unpad(padded[0], self.packed)


def length_groups(*layouts: Packed) -> list[LengthGroups] | list[OneGroup]:
    """Group the sequences that are alike in all ``layouts`` (of queries and keys, say), the same way for each of them.

    One group where the host does not know their lengths: it must not wait for the device.
    """
    known = [layout.host_lengths for layout in layouts]
    lengths = [each for each in known if each]
    if len(lengths) < len(known):
        return [OneGroup(layout) for layout in layouts]
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, of_one in enumerate(zip(*lengths, strict=True)):
        alike.setdefault(tuple(-(-length // _STEP) for length in of_one), []).append(number)
    groups = list(alike.values())
    return [LengthGroups(*each, groups) for each in zip(layouts, lengths, strict=True)]
