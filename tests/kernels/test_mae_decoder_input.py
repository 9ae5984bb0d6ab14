"""The MAE decoder's input: visible tokens then restore tokens of each clip, each with its position."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from cacophony.kernels.backend import use_backend
from cacophony.kernels.layout import Packed, Padded, PatchPositions, pack, packed_layout, pad, padded_layout
from cacophony.kernels.mae_decoder_input import decoder_layout, interleave, mae_decoder_input
from cacophony.kernels.mae_decoder_input_triton import MAX_WIDTH
from cacophony.kernels.sincos import sincos_embedding
from cacophony.kernels.triton_runtime import HAS_TRITON, record_launches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

WIDTH = 4
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
BACKENDS = ["reference", pytest.param("fused", marks=needs_triton)]
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


VISIBLE, RESTORE = [2, 0, 5, 1], [7, 3, 0, 4]


def inputs(padded: bool = False, dtype: torch.dtype = torch.float32, tables: torch.dtype = torch.float32) -> Any:
    """Arguments of the op: tokens of four clips and both tables, all asking for gradients."""
    visible, restore = (Packed.from_lengths(lengths, DEVICE) for lengths in (VISIBLE, RESTORE))
    tokens = torch.randn(visible.total, WIDTH, device=DEVICE).to(dtype)
    if padded:
        tokens = pad(tokens, visible)
    token, table = torch.randn(WIDTH, device=DEVICE).to(tables), torch.randn(8, WIDTH, device=DEVICE).to(tables)
    at, to = (on_device(layout, offset)[int(padded)] for layout, offset in ((visible, 1), (restore, 2)))
    return {
        "visible": tokens.requires_grad_(),
        "visible_positions": at,
        "restore_positions": to,
        "restore_token": token.requires_grad_(),
        "freq_embedding": table.requires_grad_(),
    }


def on_device(packed: Packed, offset: int) -> tuple[PatchPositions, PatchPositions]:
    numbers = torch.arange(packed.total, device=DEVICE) * 3 + offset
    time, freq = numbers // 8, numbers % 8
    padded = PatchPositions(pad(time, packed), pad(freq, packed), padded_layout(packed))
    return PatchPositions(time, freq, packed), padded


@needs_triton
def test_kernels_give_the_same_in_both_layouts() -> None:
    torch.manual_seed(1)
    packed = inputs()
    torch.manual_seed(1)
    padded = inputs(padded=True)
    with use_backend("fused"):
        one, slots = mae_decoder_input(**packed), mae_decoder_input(**padded)
    layout = decoder_layout(padded["visible_positions"].layout, padded["restore_positions"].layout)
    assert isinstance(layout, Padded)
    other = pack(slots, layout)
    assert torch.equal(one, other)
    cotangent = torch.randn_like(one)
    names = ("visible", "restore_token", "freq_embedding")
    d_packed = torch.autograd.grad(one, [packed[name] for name in names], cotangent)
    d_padded = torch.autograd.grad(other, [padded[name] for name in names], cotangent)
    assert torch.equal(pad(d_packed[0], packed["visible_positions"].layout), d_padded[0])
    for a, b in zip(d_packed[1:], d_padded[1:], strict=True):  # a block of rows is another one
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@needs_triton
def test_a_visible_tokens_gradient_is_its_rows() -> None:
    arguments = inputs()
    with use_backend("fused"):
        out = mae_decoder_input(**arguments)
    gradient = torch.randn_like(out)
    (d_visible,) = torch.autograd.grad(out, arguments["visible"], gradient)
    at, to = arguments["visible_positions"].layout, arguments["restore_positions"].layout
    from_visible = interleave(at.valid, ~to.valid, at, to)
    assert torch.equal(d_visible, gradient[from_visible])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_has_the_widest_dtype(backend: Any) -> None:
    half, single = torch.bfloat16, torch.float32
    for dtype, tables, expected in ((half, half, half), (half, single, single), (single, half, single)):
        arguments = inputs(dtype=dtype, tables=tables)
        with use_backend(backend):
            out = mae_decoder_input(**arguments)
        assert out.dtype == expected
        out.sum().backward()
        for name, own in (("visible", dtype), ("restore_token", tables), ("freq_embedding", tables)):
            assert arguments[name].grad.dtype == own


@needs_triton
def test_a_freq_outside_the_table_makes_its_row_nan() -> None:
    arguments = inputs()
    at = arguments["visible_positions"]
    for wrong in (8, -1, 2**40):
        freq = at.freq.clone()
        freq[1] = wrong
        arguments["visible_positions"] = PatchPositions(at.time, freq, at.layout)
        with use_backend("fused"):
            out = mae_decoder_input(**arguments)
        assert out.isnan().all(dim=1).nonzero().flatten().tolist() == [1]
        assert int(out.isnan().sum()) == WIDTH


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_may_be_int32(backend: Any) -> None:
    arguments = inputs()
    narrow = {
        name: PatchPositions(arguments[name].time.int(), arguments[name].freq.int(), arguments[name].layout)
        for name in ("visible_positions", "restore_positions")
    }
    with use_backend(backend):
        assert torch.equal(mae_decoder_input(**arguments), mae_decoder_input(**{**arguments, **narrow}))


@needs_triton
def test_one_launch_forward_two_backward() -> None:
    at, to = (Packed.from_lengths([3, 5], "meta") for _ in range(2))
    time = torch.empty(8, dtype=torch.int64, device="meta")
    visible, token, table = (
        torch.empty(shape, device="meta", requires_grad=True) for shape in ((8, 768), (768,), (8, 768))
    )
    with use_backend("fused"), record_launches() as launches:
        out = mae_decoder_input(visible, PatchPositions(time, time, at), PatchPositions(time, time, to), token, table)
        assert len(launches) == 1
        out.sum().backward()
    assert len(launches) == 3


def zeros(layout: Packed | Padded) -> PatchPositions:
    shape = layout.total if isinstance(layout, Packed) else layout.mask.shape
    time = torch.zeros(shape, dtype=torch.int64, device=DEVICE)
    return PatchPositions(time, time, layout)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visible": torch.ones(8, 5)}, "visible is 5 wide, expected an even width"),
        ({"visible": torch.ones(7, WIDTH)}, r"visible has shape \[7, 4\], expected \[8, 4\]"),
        ({"restore_token": torch.ones(1, WIDTH)}, r"restore_token has shape \[1, 4\], expected \[4\]"),
        ({"freq_embedding": torch.ones(9, WIDTH)}, r"freq_embedding has shape \[9, 4\], expected \[8, 4\]"),
        ({"freq_embedding": torch.ones(8, WIDTH, device="meta")}, "freq_embedding is on meta, expected .* as visible"),
        (
            {"restore_positions": zeros(padded_layout(Packed.from_lengths(RESTORE, DEVICE)))},
            "visible and restore must both be Padded or both Packed",
        ),
        ({"restore_positions": zeros(Packed.from_lengths([3], DEVICE))}, "1 clips to restore, expected 4 as visible"),
        (
            {"restore_positions": replace(zeros(Packed.from_lengths(RESTORE, DEVICE)), time=torch.zeros(2))},
            r"restore_positions.time has shape \[2\], expected \[14\]",
        ),
        (
            {"restore_positions": replace(zeros(Packed.from_lengths(RESTORE, DEVICE)), freq=torch.zeros(14))},
            "restore_positions.freq is torch.float32, expected torch.int64",
        ),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"mae_decoder_input: {message}"):
        mae_decoder_input(**{**inputs(), **changes})


@needs_triton
def test_what_the_kernels_do_not_take_is_named() -> None:
    def run(dtype: torch.dtype = torch.float32, tables: torch.dtype = torch.float32, width: int = WIDTH) -> None:
        arguments = inputs(dtype=dtype, tables=tables)
        arguments["visible"] = arguments["visible"].detach()[:, :1].expand(-1, width)
        token = torch.ones(width, device=DEVICE)
        arguments |= {"restore_token": token, "freq_embedding": token.expand(8, -1).to(tables)}
        mae_decoder_input(**arguments)

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"dtype": torch.float64}, "visible is torch.float64"),
        ({"tables": torch.bfloat16}, "freq_embedding is torch.bfloat16, expected torch.float32"),
        ({"width": MAX_WIDTH + 2}, "visible is 4098 wide, expected at most 4096"),
    ]
    for options, message in wrong:
        with use_backend("fused"), pytest.raises(ValueError, match=f"mae_decoder_input: {message}"):
            run(**options)
