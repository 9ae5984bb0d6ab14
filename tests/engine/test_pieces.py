"""Tensors that ranks wrote in pieces come back whole, or are named."""

import itertools
from pathlib import Path

import pytest
import torch
from cacophony.engine.pieces import join_pieces, piece_name
from cacophony.errors import InputError
from torch import Tensor

WHOLE = torch.arange(24.0).view(4, 6)
SHAPES = {"w": (4, 6), "b": (2,)}
SOURCE = Path("checkpoint")


def cut(*bounds: int) -> dict[str, Tensor]:
    ends = [0, *bounds, WHOLE.numel()]
    return {piece_name("w", a, b): WHOLE.flatten()[a:b] for a, b in itertools.pairwise(ends)}


@pytest.mark.parametrize("bounds", [(), (1,), (5, 6, 20)])
def test_pieces_in_any_order_are_the_tensor(bounds: tuple[int, ...]):
    pieces = dict(reversed(cut(*bounds).items())) | {"b": torch.ones(2)}
    found = join_pieces(pieces, SHAPES, SOURCE)
    assert found.keys() == {"w", "b"}
    assert torch.equal(found["w"], WHOLE)
    assert torch.equal(found["b"], torch.ones(2))


@pytest.mark.parametrize(
    "pieces",
    [
        {piece_name("w", 0, 5): torch.zeros(5)},
        {piece_name("w", 1, 24): torch.zeros(23)},
        {piece_name("w", 0, 24): torch.zeros(23)},
        cut(5) | {piece_name("w", 3, 5): torch.zeros(2)},
        cut(5) | {"w": WHOLE},
    ],
    ids=["short", "late", "of another length", "overlapping", "twice"],
)
def test_pieces_that_are_not_the_whole_are_named(pieces: dict[str, Tensor]):
    with pytest.raises(InputError, match=r"checkpoint: the pieces of w .* expected shape \[4, 6\]"):
        join_pieces(pieces, SHAPES, SOURCE)
