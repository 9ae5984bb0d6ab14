"""Attention pooling against Python loops, in both layouts; its kernels' invariances and what they refuse.

How far the kernels are from the truth is tested with every other op's, in test_specs.
"""

import math

import pytest
import torch
from cacophony.kernels.attention_pool import attention_pool
from cacophony.kernels.backend import use_backend
from cacophony.kernels.layout import Packed, Padded, pad, padded_layout
from cacophony.kernels.triton_runtime import HAS_TRITON
from torch import Tensor

WIDTH = 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
Weights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def weights() -> Weights:
    """Query, key weight and bias, value weight and bias."""
    shapes = ((WIDTH,), (WIDTH, WIDTH), (WIDTH,), (WIDTH, WIDTH), (WIDTH,))
    query, kw, kb, vw, vb = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return query, kw, kb, vw, vb


def slow(hidden: Tensor, parameters: Weights, heads: int) -> Tensor:
    """Pool one sequence ``[L, D]``."""
    query, key_weight, key_bias, value_weight, value_bias = (p.detach() for p in parameters)
    size = WIDTH // heads
    pooled = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores, values = [], []
        for h in hidden:
            key, value = key_weight @ h + key_bias, value_weight @ h + value_bias
            scores.append(math.exp(float(query[part] @ key[part]) / math.sqrt(size)))
            values.append(value[part])
        total = torch.zeros(size, dtype=torch.float64)
        for score, value in zip(scores, values, strict=True):
            total += score / sum(scores) * value
        pooled.append(total)
    return torch.cat(pooled)


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_equals_loops(heads: int) -> None:
    parameters, hidden = weights(), torch.randn(3, 5, WIDTH, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [False, True, True, False, True], [True] + [False] * 4])
    out = attention_pool(hidden, *parameters, heads, Padded(mask))
    assert out.shape == (3, WIDTH)
    for b in range(3):
        torch.testing.assert_close(out[b].detach(), slow(hidden[b][mask[b]], parameters, heads), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 4])
def test_padded_equals_packed_forward_and_backward(heads: int) -> None:
    packed = Packed.from_lengths([3, 1, 6])
    hidden, parameters = torch.randn(10, WIDTH, dtype=torch.float64, requires_grad=True), weights()
    one = attention_pool(hidden, *parameters, heads, packed)
    other = attention_pool(pad(hidden, packed), *parameters, heads, padded_layout(packed))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(one)
    gradients = [torch.autograd.grad(out, (hidden, *parameters), cotangent) for out in (one, other)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients() -> None:
    layout = Padded(torch.tensor([[True, True, False], [True, True, True]]))
    hidden = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)

    def pool(hidden: Tensor, query: Tensor, kw: Tensor, kb: Tensor, vw: Tensor, vb: Tensor) -> Tensor:
        return attention_pool(hidden, query, kw, kb, vw, vb, 2, layout)

    assert torch.autograd.gradcheck(pool, (hidden, *weights()), fast_mode=True)


def test_order_of_tokens_and_padding_do_not_matter() -> None:
    parameters, hidden = weights(), torch.randn(1, 6, WIDTH, dtype=torch.float64)
    out = attention_pool(hidden, *parameters, 2, Padded(torch.ones(1, 6, dtype=torch.bool)))
    order = torch.randperm(6)
    again = attention_pool(hidden[:, order], *parameters, 2, Padded(torch.ones(1, 6, dtype=torch.bool)))
    torch.testing.assert_close(again, out, rtol=1e-12, atol=1e-12)
    longer = torch.cat((hidden, torch.full((1, 4, WIDTH), 1e5, dtype=torch.float64)), dim=1)
    padded = attention_pool(longer, *parameters, 2, Padded(torch.arange(10)[None] < 6))
    torch.testing.assert_close(padded, out, rtol=1e-12, atol=1e-12)


def test_a_sequence_without_tokens_is_the_mean_of_its_slots() -> None:
    parameters = weights()
    hidden = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [False, False, False]])
    out = attention_pool(hidden, *parameters, 4, Padded(mask))
    mean = hidden[1].mean(dim=0) @ parameters[3].T + parameters[4]
    torch.testing.assert_close(out[1], mean, rtol=1e-12, atol=1e-12)
    for gradient in torch.autograd.grad(out.sum(), (hidden, *parameters)):
        assert bool(gradient.isfinite().all())


def test_packed_sequences_without_tokens_are_finite() -> None:
    parameters = weights()
    packed = Packed.from_lengths([0, 2, 0])
    out = attention_pool(torch.randn(2, WIDTH, dtype=torch.float64), *parameters, 2, packed)
    assert bool(out.isfinite().all())
    for gradient in torch.autograd.grad(out.sum(), parameters):
        assert bool(gradient.isfinite().all())


def test_extreme_scores_are_finite() -> None:
    parameters = [(p.detach().float() * 1e4).requires_grad_() for p in weights()]
    hidden = torch.randn(1, 4, WIDTH) * 1e4
    query, kw, kb, vw, vb = parameters
    out = attention_pool(hidden, query, kw, kb, vw, vb, 2, Padded(torch.ones(1, 4, dtype=torch.bool)))
    assert bool(out.isfinite().all())
    for gradient in torch.autograd.grad(out.sum(), parameters):
        assert bool(gradient.isfinite().all())


def fused(hidden: Tensor, parameters: Weights, heads: int, layout: Padded | Packed) -> list[Tensor]:
    """Pool with the kernels: the pooled, then the gradients of tokens and parameters."""
    hidden = hidden.to(DEVICE).requires_grad_()
    leaves = [p.detach().to(DEVICE, torch.float32).requires_grad_() for p in parameters]
    with use_backend("fused"):
        out = attention_pool(hidden, leaves[0], leaves[1], leaves[2], leaves[3], leaves[4], heads, layout)
    cotangent = torch.linspace(-1.0, 1.0, out.numel(), device=DEVICE).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, (hidden, *leaves), cotangent)]


@needs_triton
@pytest.mark.parametrize("heads", [1, 4])
def test_kernels_do_not_mind_the_order_of_tokens(heads: int) -> None:
    packed, parameters, hidden = Packed.from_lengths([40, 2], DEVICE), weights(), torch.randn(42, WIDTH)
    order = torch.cat((torch.randperm(40), torch.tensor([41, 40])))
    one, other = fused(hidden, parameters, heads, packed), fused(hidden[order], parameters, heads, packed)
    other[1] = other[1][order.argsort()]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@needs_triton
def test_kernels_do_not_mind_padding_anywhere() -> None:
    """Whatever the padding slots hold, packed, padded and scattered among padding give the same."""
    parameters, tokens = weights(), torch.randn(22, WIDTH)
    mask = torch.rand(2, 60).argsort(dim=1) < torch.tensor([[20], [2]])
    padded = torch.full((2, 60, WIDTH), 1e5)
    padded[mask] = tokens
    one = fused(tokens, parameters, 2, Packed.from_lengths([20, 2], DEVICE))
    other = fused(padded, parameters, 2, Padded(mask.to(DEVICE)))
    assert torch.equal(other[1][~mask], torch.zeros_like(other[1][~mask]))
    other[1] = other[1][mask]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@needs_triton
def test_kernels_give_the_key_bias_no_gradient_and_no_say() -> None:
    packed, hidden = Packed.from_lengths([7, 0, 3], DEVICE), torch.randn(10, WIDTH)
    query, key_weight, key_bias, value_weight, value_bias = weights()
    one = fused(hidden, (query, key_weight, key_bias, value_weight, value_bias), 2, packed)
    other = fused(hidden, (query, key_weight, key_bias + 100.0, value_weight, value_bias), 2, packed)
    assert not one[4].any()
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@needs_triton
def test_kernels_without_tokens_as_the_reference() -> None:
    """A masked padded sequence is the mean of its slots, whose gradient it spreads; a packed one the value bias."""
    parameters, hidden = weights(), torch.randn(1, 40, WIDTH)
    masked = fused(hidden, parameters, 2, Padded(torch.zeros(1, 40, dtype=torch.bool, device=DEVICE)))
    value_weight, value_bias = (p.detach().to(DEVICE, torch.float32) for p in parameters[3:])
    torch.testing.assert_close(masked[0][0], value_weight @ hidden[0].mean(0).to(DEVICE) + value_bias)
    assert torch.equal(masked[1], masked[1][:, :1].expand_as(masked[1]))
    assert not masked[2].any()
    assert not masked[3].any()
    empty = fused(torch.zeros(0, WIDTH), parameters, 2, Packed.from_lengths([0], DEVICE))
    torch.testing.assert_close(empty[0][0], value_bias)


@needs_triton
def test_kernels_multiply_in_autocasts_dtype() -> None:
    packed, hidden = Packed.from_lengths([7, 3], DEVICE), torch.randn(10, WIDTH)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        out, d_hidden, *gradients = fused(hidden, weights(), 2, packed)
    assert out.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in (d_hidden, *gradients)} == {torch.float32}


def test_wrong_arguments_are_named() -> None:
    layout = Packed.from_lengths([3])
    hidden, (query, kw, kb, vw, vb) = torch.randn(3, WIDTH, dtype=torch.float64), weights()
    with pytest.raises(ValueError, match="heads is 3, expected a divisor of hidden's width 8"):
        attention_pool(hidden, query, kw, kb, vw, vb, 3, layout)
    with pytest.raises(ValueError, match="value_weight has shape"):
        attention_pool(hidden, query, kw, kb, vw[:4], vb, 2, layout)
    with pytest.raises(ValueError, match="hidden has shape"):
        attention_pool(hidden[:2], query, kw, kb, vw, vb, 2, layout)


@needs_triton
@pytest.mark.parametrize(
    ("width", "heads", "message"), [(2048, 8, "2048 wide, expected 1 to 1024"), (1024, 16, "heads is 16")]
)
def test_kernels_refuse_what_does_not_fit_the_chip(width: int, heads: int, message: str) -> None:
    shapes = (3, width), (width,), (width, width), (width,), (width, width), (width,)
    hidden, query, kw, kb, vw, vb = (torch.empty(shape, device="meta") for shape in shapes)
    with use_backend("fused"), pytest.raises(ValueError, match=message):
        attention_pool(hidden, query, kw, kb, vw, vb, heads, Packed.from_lengths([3], "meta"))
