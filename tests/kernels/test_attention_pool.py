"""Attention pooling against Python loops, in both layouts."""

import math

import pytest
import torch
from cacophony.kernels.attention_pool import attention_pool
from cacophony.kernels.layout import Packed, Padded, pad, padded_layout
from torch import Tensor

WIDTH = 8
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
