"""The MAE decoder's input: visible tokens then restore tokens of each clip, each with its position."""

import pytest
import torch
from cacophony.kernels.layout import Packed, Padded, PatchPositions, pack, packed_layout, pad, padded_layout
from cacophony.kernels.mae_decoder_input import decoder_layout, interleave, mae_decoder_input
from cacophony.kernels.sincos import sincos_embedding
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

WIDTH = 4
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=4)


def positions(packed: Packed, offset: int) -> tuple[PatchPositions, PatchPositions]:
    """Different positions for every token, packed and padded."""
    numbers = torch.arange(packed.total) * 3 + offset
    time, freq = numbers // 8, numbers % 8
    padded = PatchPositions(pad(time, packed), pad(freq, packed), padded_layout(packed))
    return PatchPositions(time, freq, packed), padded


@settings(max_examples=40)
@given(PAIRS, st.integers(0, 2**31))
def test_visible_then_restore_with_positions(pairs: list[tuple[int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    visible, restore = Packed.from_lengths([v for v, _ in pairs]), Packed.from_lengths([r for _, r in pairs])
    tokens = torch.randn(visible.total, WIDTH, dtype=torch.float64)
    token, table = torch.randn(WIDTH, dtype=torch.float64), torch.randn(8, WIDTH, dtype=torch.float64)
    at, to = positions(visible, 1)[0], positions(restore, 2)[0]

    def embedded(row: Tensor, where: PatchPositions, i: int) -> Tensor:
        return row + sincos_embedding(where.time[i], WIDTH).double() + table[where.freq[i]]

    expected: list[Tensor] = []
    v = r = 0
    for visible_count, restore_count in pairs:
        expected += [embedded(tokens[i], at, i) for i in range(v, v + visible_count)]
        expected += [embedded(token, to, i) for i in range(r, r + restore_count)]
        v, r = v + visible_count, r + restore_count
    out = mae_decoder_input(tokens, at, to, token, table)
    assert out.shape == (len(expected), WIDTH)
    if expected:
        torch.testing.assert_close(out, torch.stack(expected), rtol=0, atol=1e-12)
    layout = decoder_layout(visible, restore)
    assert layout.lengths.tolist() == [visible_count + restore_count for visible_count, restore_count in pairs]


@settings(max_examples=40)
@given(PAIRS, st.integers(0, 2**31))
def test_padded_equals_packed_forward_and_backward(pairs: list[tuple[int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    visible, restore = Packed.from_lengths([v for v, _ in pairs]), Packed.from_lengths([r for _, r in pairs])
    tokens = torch.randn(visible.total, WIDTH, dtype=torch.float64, requires_grad=True)
    token = torch.randn(WIDTH, dtype=torch.float64, requires_grad=True)
    table = torch.randn(8, WIDTH, dtype=torch.float64, requires_grad=True)
    (packed_at, padded_at), (packed_to, padded_to) = positions(visible, 1), positions(restore, 2)

    padded = decoder_layout(padded_at.layout, padded_to.layout)
    packed = decoder_layout(visible, restore)
    assert isinstance(padded, Padded)
    assert isinstance(packed, Packed)
    assert torch.equal(packed_layout(padded).cu_seqlens, packed.cu_seqlens)
    assert packed.max_len >= int(packed.lengths.max())

    one = mae_decoder_input(tokens, packed_at, packed_to, token, table)
    other = pack(mae_decoder_input(pad(tokens, visible), padded_at, padded_to, token, table), padded)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(one)
    inputs = (tokens, token, table)
    gradients = [torch.autograd.grad(out, inputs, cotangent) for out in (one, other)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_interleave_takes_any_trailing_shape() -> None:
    visible, restore = Packed.from_lengths([1, 0, 2]), Packed.from_lengths([2, 1, 0])
    one, other = torch.arange(3), torch.arange(10, 13)
    assert interleave(one, other, visible, restore).tolist() == [0, 10, 11, 12, 1, 2]
    pixels = interleave(one[:, None, None].expand(3, 2, 2), other[:, None, None].expand(3, 2, 2), visible, restore)
    assert pixels[:, 1, 1].tolist() == [0, 10, 11, 12, 1, 2]


def test_layouts_do_not_mix() -> None:
    packed = Packed.from_lengths([1])
    for pair in ((packed, padded_layout(packed)), (padded_layout(packed), packed)):
        with pytest.raises(ValueError, match="both be Padded or both Packed"):
            decoder_layout(*pair)
