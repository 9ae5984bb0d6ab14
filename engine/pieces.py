"""Tensors in pieces: what a rank writes of a tensor whose rest lies on others, and how a reader puts them together.

A tensor that is there in full has its own name and shape. A piece ``name[start:stop]`` is flat, and holds so many
elements of the flattened tensor.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError

_PIECE = re.compile(r"(.+)\[(\d+):(\d+)\]")


def piece_name(name: str, start: int, stop: int) -> str:
    """Return the name of elements ``start`` to ``stop`` of the flattened tensor ``name``."""
    return f"{name}[{start}:{stop}]"


def join_pieces(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: Path
) -> dict[str, Tensor]:
    """Return ``tensors`` with the pieces of each tensor joined to the shape that ``shapes`` says.

    Raises InputError that names a tensor whose pieces are not the whole of it.
    """
    joined: dict[str, Tensor] = {}
    pieces: dict[str, list[tuple[int, int, Tensor]]] = defaultdict(list)
    for key, tensor in tensors.items():
        if found := _PIECE.fullmatch(key):
            pieces[found[1]].append((int(found[2]), int(found[3]), tensor))
        else:
            joined[key] = tensor
    for name, parts in pieces.items():
        parts.sort(key=lambda part: part[:2])
        shape = shapes.get(name, (parts[-1][1],))
        bounds = [0, *(stop for _, stop, _ in parts)]
        follow = [start for start, _, _ in parts] == bounds[:-1]
        if name in joined or not follow or bounds[-1] != math.prod(shape) or not _lengths_fit(parts):
            raise InputError(f"{source}: the pieces of {name} are not the whole of it; expected shape {list(shape)}")
        joined[name] = torch.cat([part for _, _, part in parts]).view(shape)
    return joined


def _lengths_fit(parts: list[tuple[int, int, Tensor]]) -> bool:
    return all(part.shape == (stop - start,) for start, stop, part in parts)
