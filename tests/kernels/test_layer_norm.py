"""Layer normalisation against the textbook formula in float64."""

import pytest
import torch
from cacophony.kernels.layer_norm import layer_norm
from torch import Tensor


def slow(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x, weight, bias = x.double(), weight.double(), bias.double()
    mean = x.sum(dim=-1, keepdim=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(dim=-1, keepdim=True) / x.shape[-1]
    return (x - mean) / (variance + eps) ** 0.5 * weight + bias


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 48), (0, 4), (2, 0, 4), (1, 769)])
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_equals_the_formula(shape: tuple[int, ...], eps: float) -> None:
    x, weight, bias = torch.randn(shape).double(), torch.randn(shape[-1]).double(), torch.randn(shape[-1]).double()
    torch.testing.assert_close(layer_norm(x, weight, bias, eps), slow(x, weight, bias, eps), rtol=1e-12, atol=1e-12)
    single = layer_norm(x.float(), weight.float(), bias.float(), eps)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), slow(x, weight, bias, eps), rtol=1e-5, atol=1e-5)


def test_eps_is_that_of_the_model() -> None:
    """On a row of variance 1e-6 the two epsilons of the model differ by a factor of 2.3."""
    x = torch.tensor([[1e-3, -1e-3]], dtype=torch.float64)
    one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert layer_norm(x, one, zero, 1e-6)[0, 0] == pytest.approx(0.5**0.5, rel=1e-9)
    assert layer_norm(x, one, zero, 1e-5)[0, 0] == pytest.approx(11**-0.5, rel=1e-9)


def test_gradients() -> None:
    arguments = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (5,), (5,))]
    assert torch.autograd.gradcheck(lambda x, weight, bias: layer_norm(x, weight, bias, 1e-6), arguments)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4, 1e15])
def test_extreme_rows_are_finite(scale: float) -> None:
    x = (torch.randn(4, 64) * scale).requires_grad_()
    out = layer_norm(x, torch.ones(64), torch.zeros(64), 1e-6)
    out.square().sum().backward()
    assert x.grad is not None
    assert bool(out.isfinite().all())
    assert bool(x.grad.isfinite().all())


def test_a_constant_row_becomes_the_bias() -> None:
    bias = torch.randn(16)
    torch.testing.assert_close(layer_norm(torch.full((2, 16), 3.0), torch.randn(16), bias, 1e-6), bias.expand(2, 16))


def test_a_large_common_offset_costs_no_more_than_the_input_resolution() -> None:
    x = torch.randn(8, 96) + 1000.0  # float32 holds it to 3e-5 of the spread of 1
    out = layer_norm(x, torch.ones(96), torch.zeros(96), 1e-6)
    torch.testing.assert_close(out.double(), slow(x, torch.ones(96), torch.zeros(96), 1e-6), rtol=0, atol=1e-3)
