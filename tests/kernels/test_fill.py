"""Filling up: the sequences of the data stay first and whole, and every size is the budget's."""

from dataclasses import replace

import pytest
import torch
from cacophony.kernels.fill import Budget, budgets, fill_layout, fill_patches, fill_rows, real_tokens
from cacophony.kernels.layout import Packed, Patches, PatchPositions, padded_layout
from hypothesis import given
from hypothesis import strategies as st

LONGEST = 5
RAGGED = st.lists(st.integers(0, LONGEST), max_size=6)


@given(RAGGED, st.integers(0, 40))
def test_any_data_within_the_budget_comes_first_and_dummies_last(lengths: list[int], spare: int) -> None:
    (budget,) = budgets(6, (sum(lengths) + spare, LONGEST))
    filled = fill_layout(Packed.from_lengths(lengths), budget)
    assert (filled.total, filled.batch_size, filled.max_len) == (budget.tokens, budget.sequences, budget.max_len)
    found = filled.lengths.tolist()
    assert found[: len(lengths)] == lengths
    dummies = found[len(lengths) :]
    assert sum(dummies) == spare
    assert max([0, *dummies]) <= LONGEST
    assert dummies == sorted(dummies)  # empty ones before those that fill
    assert real_tokens(filled, sum(lengths)).tolist() == [True] * sum(lengths) + [False] * spare


def test_budgets_share_one_number_of_sequences_that_takes_the_dummies_of_the_emptiest_micro_batch() -> None:
    audio, text = budgets(3, (40, 16), (22, 4))
    assert (audio, text) == (Budget(40, 9, 16), Budget(22, 9, 4))
    assert fill_layout(Packed.from_lengths([0, 0, 0]), text).lengths.tolist() == [0, 0, 0, 2, 4, 4, 4, 4, 4]


def test_a_full_micro_batch_gets_empty_sequences_only() -> None:
    filled = fill_layout(Packed.from_lengths([3, 4]), Budget(7, 5, 4))
    assert filled.lengths.tolist() == [3, 4, 0, 0, 0]


def test_rows_and_patches_are_filled_with_one_value() -> None:
    assert fill_rows(torch.tensor([3, 4]), 4, 9).tolist() == [3, 4, 9, 9]
    assert fill_rows(torch.ones(1, 2), 2).tolist() == [[1, 1], [0, 0]]
    packed = Packed.from_lengths([2, 1])
    patches = Patches(torch.ones(3, 256), PatchPositions(torch.tensor([4, 5, 6]), torch.tensor([1, 2, 3]), packed))
    filled = fill_patches(patches, Budget(5, 4, 2))
    assert filled.positions.time.tolist() == [4, 5, 6, 0, 0]
    assert filled.positions.freq.tolist() == [1, 2, 3, 0, 0]
    assert torch.equal(filled.values, torch.cat((torch.ones(3, 256), torch.zeros(2, 256))))
    padded = replace(patches, positions=replace(patches.positions, layout=padded_layout(packed)))
    with pytest.raises(ValueError, match="patches are Padded, expected Packed"):
        fill_patches(padded, Budget(5, 4, 2))


def test_real_tokens_of_a_padded_layout_are_its_valid_ones() -> None:
    padded = padded_layout(Packed.from_lengths([2, 0, 1]))
    assert torch.equal(real_tokens(padded, 3), padded.mask)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(6, 5, 4), "packed has 7 tokens, 4 in the longest sequence, expected at most 6 and 4"),
        (Budget(9, 5, 3), "packed has 7 tokens, 4 in the longest sequence, expected at most 9 and 3"),
        (Budget(16, 4, 4), "budget has 2 sequences beside packed's, expected 3 for the fill"),
        (Budget(7, 1, 4), "budget has -1 sequences beside packed's, expected 0"),
    ],
)
def test_what_does_not_fit_is_refused(budget: Budget, message: str) -> None:
    with pytest.raises(ValueError, match=f"fill_layout: {message}"):
        fill_layout(Packed.from_lengths([3, 4]), budget)
