"""Where the parameters lie in an arena's flat buffers, and how ranks divide these.

Neighbouring parameters make up a bucket, which ranks exchange at once. Each rank has a slice of every bucket, as large
as the others', and keeps its slices side by side in its own buffers: a bucket that begins at element n of the whole
begins at n / ranks of the rank's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..kernels.flat_buffers import SEGMENT


@dataclass(frozen=True)
class Place:
    """Where a parameter lies: from ``start``, in the narrow part of the copy or in the wide; in which bucket."""

    parameter: nn.Parameter
    start: int
    shape: torch.Size
    is_narrow: bool
    bucket: int

    def of(self, buffer: Tensor, start: int = 0) -> Tensor:
        """Return the view of a flat ``buffer`` whose first element is number ``start`` of the master."""
        return buffer[self.start - start :][: self.shape.numel()].view(self.shape)


@dataclass(frozen=True)
class Bucket:
    """Neighbouring parameters: where they lie in the whole buffers, and where each rank's slice lies in its own."""

    whole: slice
    own: slice
    is_narrow: bool

    def share(self, rank: int) -> slice:
        """Return where the slice of ``rank`` lies in the whole buffers."""
        elements = self.own.stop - self.own.start
        return slice(self.whole.start + rank * elements, self.whole.start + (rank + 1) * elements)


@dataclass
class ArenaLayout:
    """Places and buckets of all parameters, those narrow in the copy first, in the order they were named in."""

    ranks: int
    places: dict[str, Place] = field(default_factory=dict)
    buckets: list[Bucket] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    """Number of the parameter group of every SEGMENT elements."""

    @classmethod
    def of(
        cls,
        parameters: Mapping[str, nn.Parameter],
        narrow: set[int],
        group_of: Mapping[str, int],
        ranks: int,
        bucket_elements: int,
    ) -> "ArenaLayout":
        """Lay out ``parameters``, of which ``narrow`` holds identities, in buckets of at most so many elements.

        A parameter that is larger has a bucket of its own. Every bucket is filled up to as much for each rank.
        """
        layout = cls(ranks)
        for is_narrow in (True, False):
            first = layout.elements
            for name, parameter in parameters.items():
                if (id(parameter) in narrow) != is_narrow:
                    continue
                segments = -(-parameter.numel() // SEGMENT)
                if layout.elements > first and layout.elements + segments * SEGMENT - first > bucket_elements:
                    layout._close(first, is_narrow)
                    first = layout.elements
                place = Place(parameter, layout.elements, parameter.shape, is_narrow, len(layout.buckets))
                layout.places[name] = place
                layout.groups += [group_of[name]] * segments
            layout._close(first, is_narrow)
        return layout

    def _close(self, first: int, is_narrow: bool) -> None:
        self.groups += [0] * (-(len(self.groups) - first // SEGMENT) % self.ranks)
        if self.elements > first:
            own = slice(first // self.ranks, self.elements // self.ranks)
            self.buckets.append(Bucket(slice(first, self.elements), own, is_narrow))

    @property
    def elements(self) -> int:
        """Elements of the whole buffers."""
        return len(self.groups) * SEGMENT

    @property
    def narrow_elements(self) -> int:
        """Elements that are narrow in the copy: the first ones."""
        return max((bucket.whole.stop for bucket in self.buckets if bucket.is_narrow), default=0)

    def cut(self, flat: Tensor, rank: int) -> Tensor:
        """Return the share of ``rank`` of a whole ``flat`` buffer."""
        return torch.cat([flat[bucket.share(rank)] for bucket in self.buckets])

    def overlap(self, place: Place, rank: int) -> tuple[int, int, int]:
        """Return the first and last of a parameter's elements that ``rank`` has, and where it has the first."""
        bucket = self.buckets[place.bucket]
        part = bucket.share(rank)
        first = max(place.start, part.start)
        last = max(first, min(place.start + place.shape.numel(), part.stop))
        return first - place.start, last - place.start, bucket.own.start + first - part.start
