"""Dropout: right rate and scale, and a mask that only its key decides."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from cacophony.kernels.backend import use_backend
from cacophony.kernels.dropout import DropoutKey, attention_dropout, dropout
from cacophony.kernels.layout import Packed, pack, pad, padded_layout
from cacophony.kernels.triton_runtime import HAS_TRITON
from torch import Tensor

LENGTHS = [5, 0, 9, 2]
PACKED = Packed.from_lengths(LENGTHS)
PADDED = padded_layout(PACKED)
WIDTH = 64
KEY = DropoutKey(rate=0.3, seed=4, step=11, sample_index=torch.tensor([100, 7, 2**35, 3]))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


def mask(key: DropoutKey) -> Tensor:
    """What dropout makes of ones: [T, WIDTH]."""
    return dropout(torch.ones(PACKED.total, WIDTH, dtype=torch.float64), key, PACKED)


def agreement(one: Tensor, other: Tensor) -> float:
    return float(((one != 0) == (other != 0)).double().mean())


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_rate_and_scale(rate: float) -> None:
    layout = Packed.from_lengths([100] * 10)
    key = DropoutKey(rate=rate, seed=0, step=0, sample_index=torch.arange(10))
    out = dropout(torch.ones(1000, 100, dtype=torch.float64), key, layout)
    assert out.unique().tolist() == pytest.approx([0.0, 1.0 / (1.0 - rate)], rel=1e-12)
    # 100000 features; six standard deviations. Along each axis: 1000 or more features a mean.
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(float((out == 0).double().mean()) - rate) < 6 * deviation / 100_000**0.5
    tokens = (out == 0).double().view(10, 100, 100)
    for dims in itertools.combinations(range(3), 2):
        assert float((tokens.mean(dim=dims) - rate).abs().max()) < 6 * deviation / 1000**0.5


def test_no_key_or_rate_0_changes_nothing() -> None:
    x = torch.randn(PACKED.total, WIDTH)
    assert dropout(x, None, PACKED) is x
    assert torch.equal(dropout(x, dataclasses.replace(KEY, rate=0.0), PACKED), x)
    weights = torch.randn(2, 3, 4, 5)
    assert torch.equal(attention_dropout(weights, None), weights)
    assert torch.equal(attention_dropout(weights, dataclasses.replace(KEY, rate=0.0)), weights)


def test_a_replayed_pass_loses_the_same_features() -> None:
    first = mask(KEY)
    torch.rand(5)  # the global generator has no part in it
    assert torch.equal(mask(dataclasses.replace(KEY)), first)


def test_layouts_lose_the_same_features() -> None:
    x = torch.randn(PACKED.total, WIDTH)
    assert torch.equal(pack(dropout(pad(x, PACKED), KEY, PADDED), PADDED), dropout(x, KEY, PACKED))


def test_micro_batches_and_order_lose_the_same_features() -> None:
    rows = mask(KEY).split(LENGTHS)
    for order in itertools.permutations(range(4), 2):
        layout = Packed.from_lengths([LENGTHS[i] for i in order])
        key = dataclasses.replace(KEY, sample_index=KEY.sample_index[list(order)])
        part = dropout(torch.ones(layout.total, WIDTH, dtype=torch.float64), key, layout)
        assert torch.equal(part, torch.cat([rows[i] for i in order]))


@pytest.mark.parametrize("change", [{"seed": 5}, {"step": 12}, {"site": 1}, {"sample_index": KEY.sample_index + 1}])
def test_another_key_loses_other_features(change: dict[str, object]) -> None:
    # Independent masks agree with probability 0.7² + 0.3² = 0.58; 1024 features: standard deviation 0.015.
    assert abs(agreement(mask(KEY), mask(dataclasses.replace(KEY, **change))) - 0.58) < 0.08


def test_tokens_lose_different_features() -> None:
    rows = mask(KEY)
    for one, other in itertools.pairwise(rows):
        assert agreement(one, other) < 0.9


def test_every_site_has_its_own_mask() -> None:
    keys = [KEY, *(KEY.at(i) for i in range(4)), *(KEY.at(i).at(j) for i in range(3) for j in range(3))]
    keys += [KEY.at(0).at(4095), KEY.at(4095)]
    assert len({key.site for key in keys}) == len(keys)
    masks = [mask(key) for key in keys]
    for one, other in itertools.combinations(masks, 2):
        assert abs(agreement(one, other) - 0.58) < 0.08


def test_gradient_is_the_mask() -> None:
    x = torch.randn(PACKED.total, WIDTH, dtype=torch.float64, requires_grad=True)
    dropout(x, KEY, PACKED).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, mask(KEY))


def test_dtype_stays() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert dropout(torch.ones(PACKED.total, 4, dtype=dtype), KEY, PACKED).dtype == dtype


def test_attention_weights_share_one_mask_over_clips_and_heads() -> None:
    out = attention_dropout(torch.ones(3, 4, 60, 50, dtype=torch.float64), KEY)
    assert torch.equal(out, out[:1, :1].expand_as(out))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7], rel=1e-12)
    # 3000 weights: standard deviation 0.0084
    assert abs(float((out[0, 0] == 0).double().mean()) - 0.3) < 0.05
    assert agreement(out[0, 0, 1:], out[0, 0, :-1]) < 0.7
    # a wider batch (longer padding) leaves the mask of the slots they share as it is
    assert torch.equal(attention_dropout(torch.ones(1, 1, 20, 30, dtype=torch.float64), KEY), out[:1, :1, :20, :30])


@needs_triton
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("width", [1, 64, 770])
@pytest.mark.parametrize("rate", [1e-9, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("form", ["packed", "padded"])
def test_kernel_forward_and_backward_lose_what_the_reference_loses(form: str, rate: float, width: int) -> None:
    """Feature by feature, on far keys; what stays is scaled to 2 float32 ulps."""
    packed = Packed.from_lengths(LENGTHS, DEVICE)
    layout = packed if form == "packed" else padded_layout(packed)
    key = DropoutKey(rate, seed=2**62 + 1, step=2**33, sample_index=KEY.sample_index, site=2**31 + 7).at(4095)
    slots = (packed.total,) if form == "packed" else (len(LENGTHS), packed.padded_width)
    x = (1.0 + torch.rand(*slots, width, device=DEVICE)).requires_grad_()
    upstream = 1.0 + torch.rand(*slots, width, device=DEVICE)
    results = []
    for backend in ("reference", "fused"):
        with use_backend(backend):
            out = dropout(x, key, layout)
        results.append((out.detach(), *torch.autograd.grad(out, x, upstream)))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found == 0, expected == 0)
        torch.testing.assert_close(found, expected, rtol=2.5e-7, atol=0)


@needs_triton
def test_kernel_takes_any_strides_and_rounds_once() -> None:
    """In float16: the interpreter cuts float32 off to bfloat16 where a GPU rounds."""
    key = dataclasses.replace(KEY, sample_index=torch.stack((KEY.sample_index, KEY.sample_index + 1), 1)[:, 0])
    layout = Packed.from_lengths(LENGTHS, DEVICE)
    x = torch.randn(WIDTH, PACKED.total, device=DEVICE).half().T
    with use_backend("fused"):
        out = dropout(x, key, layout)
    exact = dropout(x.double(), KEY, layout)
    torch.testing.assert_close(out, exact.half(), rtol=0, atol=0)


@needs_triton
def test_nothing_but_the_names_of_the_mask_is_kept_for_backward() -> None:
    layout = Packed.from_lengths(LENGTHS, DEVICE)
    x = torch.randn(PACKED.total, WIDTH, device=DEVICE, requires_grad=True)
    kept: list[Tensor] = []
    with use_backend("fused"), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        dropout(x, KEY, layout)
    assert sum(t.numel() for t in kept) == len(LENGTHS) + 2 * PACKED.total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, WIDTH)}, r"x has shape \[3, 64\], expected \[16, 'D'\]"),
        (
            {"key": dataclasses.replace(KEY, sample_index=torch.arange(3))},
            r"sample_index has shape \[3\], expected \[4\]",
        ),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(PACKED.total, WIDTH), "key": KEY, "layout": PACKED}
    with pytest.raises(ValueError, match=f"dropout: {message}"):
        dropout(**arguments | changes)


@needs_triton
def test_a_dtype_the_kernel_does_not_take_is_named() -> None:
    layout = Packed.from_lengths(LENGTHS, DEVICE)
    x = torch.zeros(PACKED.total, WIDTH, dtype=torch.float64, device=DEVICE)
    with (
        use_backend("fused"),
        pytest.raises(ValueError, match=r"dropout: x is torch\.float64, expected torch\.float32"),
    ):
        dropout(x, KEY, layout)
