"""Padded and packed layouts hold the same tokens, in the same order, forward and backward."""

import pytest
import torch
from cacophony.kernels.layout import Packed, Padded, pack, packed_layout, pad, padded_layout, unpad
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

RAGGED = st.lists(st.integers(0, 5), max_size=5)
TRAILING = st.sampled_from([(), (3,), (2, 2)])


def numbered(packed: Packed, *trailing: int) -> Tensor:
    """Tokens that are all different and never 0."""
    shape = (packed.total, *trailing)
    return torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


@given(RAGGED, TRAILING)
def test_pad_puts_token_i_of_sequence_b_at_slot_b_i_and_zero_elsewhere(
    lengths: list[int], trailing: tuple[int, ...]
) -> None:
    packed = Packed.from_lengths(lengths)
    tokens = numbered(packed, *trailing)
    padded = pad(tokens, packed)
    assert padded.shape == (len(lengths), max([1, *lengths]), *trailing)
    rows = iter(tokens)
    for b, length in enumerate(lengths):
        for slot in range(padded.shape[1]):
            expected = next(rows) if slot < length else torch.zeros(trailing, dtype=torch.float64)
            assert torch.equal(padded[b, slot], expected)


@given(RAGGED, TRAILING)
def test_round_trips(lengths: list[int], trailing: tuple[int, ...]) -> None:
    packed = Packed.from_lengths(lengths)
    tokens = numbered(packed, *trailing)
    padded = padded_layout(packed)
    assert torch.equal(unpad(pad(tokens, packed), packed), tokens)
    assert torch.equal(pack(pad(tokens, packed), padded), tokens)
    again = packed_layout(padded)
    assert torch.equal(again.cu_seqlens, packed.cu_seqlens)
    assert (again.max_len, again.total) == (packed.max_len, packed.total)


@given(RAGGED)
def test_layouts_describe_the_same_sequences(lengths: list[int]) -> None:
    packed = Packed.from_lengths(lengths)
    padded = padded_layout(packed)
    assert packed.batch_size == padded.batch_size == len(lengths)
    assert packed.lengths.tolist() == padded.lengths.tolist() == lengths
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.total == sum(lengths) == int(packed.valid.sum()) == int(padded.valid.sum())
    assert packed.positions.tolist() == [i for length in lengths for i in range(length)]
    assert packed.sequence_ids.tolist() == [b for b, length in enumerate(lengths) for _ in range(length)]
    assert torch.equal(pack(padded.positions, padded), packed.positions)


@given(RAGGED)
def test_spread_gives_every_token_the_value_of_its_sequence(lengths: list[int]) -> None:
    packed = Packed.from_lengths(lengths)
    padded = padded_layout(packed)
    values = torch.arange(len(lengths)) * 7 + 3
    assert packed.spread(values).tolist() == [3 + 7 * b for b, length in enumerate(lengths) for _ in range(length)]
    assert padded.spread(values).shape == padded.mask.shape
    assert torch.equal(pack(padded.spread(values), padded), packed.spread(values))


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4))
def test_pack_takes_valid_tokens_wherever_the_mask_has_them(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    tokens = torch.arange(mask.numel()).reshape(mask.shape)
    expected = [4 * b + slot for b, row in enumerate(rows) for slot, real in enumerate(row) if real]
    assert pack(tokens, Padded(mask)).tolist() == expected
    assert packed_layout(Padded(mask)).lengths.tolist() == [sum(row) for row in rows]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_padded_layout_of_no_tokens_has_one_slot(lengths: list[int]) -> None:
    packed = Packed.from_lengths(lengths)
    assert packed.padded_width == 1
    assert padded_layout(packed).mask.tolist() == [[False]] * len(lengths)
    assert pad(torch.zeros(0, 3), packed).shape == (len(lengths), 1, 3)
    assert unpad(torch.ones(len(lengths), 1, 3), packed).shape == (0, 3)


def test_max_len_may_exceed_the_longest_sequence() -> None:
    packed = Packed(torch.tensor([0, 2, 3], dtype=torch.int32), max_len=6, total=3)
    tokens = numbered(packed, 2)
    assert pad(tokens, packed).shape == (2, 6, 2)
    assert torch.equal(unpad(pad(tokens, packed), packed), tokens)
    assert padded_layout(packed).mask.sum(dim=1).tolist() == [2, 1]


def test_gradients_flow_to_real_tokens_only() -> None:
    packed = Packed.from_lengths([2, 0, 3])
    padded = padded_layout(packed)
    weights = torch.randn(3, 3, 2, dtype=torch.float64)

    tokens = numbered(packed, 2).requires_grad_()
    (pad(tokens, packed) * weights).sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, weights[padded.mask])

    for take in (lambda x: unpad(x, packed), lambda x: pack(x, padded)):
        slots = torch.zeros(3, 3, 2, dtype=torch.float64, requires_grad=True)
        (take(slots) * weights[padded.mask]).sum().backward()
        assert slots.grad is not None
        assert torch.equal(slots.grad, weights * padded.mask[..., None])


@pytest.mark.parametrize(
    ("offsets", "max_len", "total", "message"),
    [
        ([1, 3], 3, 3, "cu_seqlens goes from 1 to 3, expected 0 to total, 3"),
        ([0, 3], 3, 4, "cu_seqlens goes from 0 to 3, expected 0 to total, 4"),
        ([0, 3, 2, 4], 4, 4, "cu_seqlens decreases after entry 1"),
        ([0, 3, 4], 2, 4, "max_len is 2, expected at least 3"),
        ([0, 3], 3, 2**31, "total is 2147483648"),
    ],
)
def test_offsets_that_are_no_partition_are_refused(offsets: list[int], max_len: int, total: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packed(torch.tensor(offsets, dtype=torch.int32), max_len, total)


def test_offsets_of_another_dtype_or_shape_are_refused() -> None:
    for offsets in (torch.tensor([0, 2]), torch.tensor([[0, 2]], dtype=torch.int32), torch.tensor([]).int()):
        with pytest.raises(ValueError, match=r"expected torch.int32 \[sequences \+ 1\]"):
            Packed(offsets, 2, 2)


def test_negative_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths holds -1"):
        Packed.from_lengths([3, -1])


def test_offsets_on_a_device_are_not_read_back() -> None:
    layout = Packed(torch.zeros(3, dtype=torch.int32, device="meta"), 2, 3)
    assert layout.batch_size == 2


def test_empty_sequences_are_legal_and_max_len_is_a_bound() -> None:
    layout = Packed(torch.tensor([0, 0, 2, 2], dtype=torch.int32), max_len=5, total=2)
    assert layout.lengths.tolist() == [0, 2, 0]
    assert Packed(torch.tensor([0], dtype=torch.int32), 0, 0).batch_size == 0
