"""The linear map and its activations against Python sums and the mathematical library."""

import math

import pytest
import torch
from cacophony.kernels.linear import Activation, linear

ACTIVATIONS = {
    None: lambda y: y,
    "silu": lambda y: y / (1.0 + math.exp(-y)),
    "gelu": lambda y: 0.5 * y * (1.0 + math.erf(y / math.sqrt(2.0))),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("leading", [(1,), (5,), (2, 3)])
def test_equals_python_sums(activation: Activation | None, leading: tuple[int, ...]) -> None:
    x, weight, bias = (torch.randn(shape, dtype=torch.float64) for shape in ((*leading, 3), (4, 3), (4,)))
    out = linear(x, weight, bias, activation)
    assert out.shape == (*leading, 4)
    for row, result in zip(x.view(-1, 3), out.view(-1, 4), strict=True):
        for n in range(4):
            y = sum(float(row[k] * weight[n, k]) for k in range(3)) + float(bias[n])
            assert float(result[n]) == pytest.approx(ACTIVATIONS[activation](y), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(activation: Activation | None) -> None:
    arguments = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (4, 3), (4,))]
    assert torch.autograd.gradcheck(lambda x, weight, bias: linear(x, weight, bias, activation), arguments)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_values_are_finite(activation: Activation | None) -> None:
    x = torch.tensor([[-1e30], [-1e4], [0.0], [1e4], [1e30]], requires_grad=True)
    out = linear(x, torch.ones(1, 1), torch.zeros(1), activation)
    out.sum().backward()
    assert x.grad is not None
    assert bool(out.isfinite().all())
    assert bool(x.grad.isfinite().all())
    if activation:
        assert out.flatten().tolist() == pytest.approx([0.0, 0.0, 0.0, 1e4, 1e30])


def test_no_rows_are_legal() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    linear(torch.zeros(0, 3), weight, torch.zeros(4), "silu").sum().backward()
    assert weight.grad is not None
    assert not bool(weight.grad.any())
