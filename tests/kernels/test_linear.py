"""The linear map and its activations against Python sums and the mathematical library."""

import math

import pytest
import torch
from cacophony.kernels.activation import Activation
from cacophony.kernels.backend import use_backend
from cacophony.kernels.linear import linear, linear_reference
from cacophony.kernels.triton_runtime import HAS_TRITON

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

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


@needs_triton
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_follows_autocast_like_the_reference(activation: Activation | None) -> None:
    """In float16, to which Triton's interpreter rounds as a GPU does."""
    shapes = (2, 9, 24), (40, 24), (40,)
    x, weight, bias = operands = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]
    with torch.autocast(DEVICE.type, torch.float16):
        expected = linear_reference(x, weight, bias, activation)
        with use_backend("fused"):
            found = linear(x, weight, bias, activation)
    exact = linear_reference(x, weight, bias, activation)
    assert found.dtype == expected.dtype == torch.float16
    cotangent = torch.randn_like(exact)
    for output, other, truth in zip(
        (found, *torch.autograd.grad(found, operands, cotangent.half())),
        (expected, *torch.autograd.grad(expected, operands, cotangent.half())),
        (exact, *torch.autograd.grad(exact, operands, cotangent)),
        strict=True,
    ):
        error, reference_error = (float((t.float() - truth).detach().abs().max()) for t in (output, other))
        assert 0.0 < error <= 1.5 * reference_error


@needs_triton
@pytest.mark.parametrize("frozen", range(3))
def test_fused_takes_any_strides_and_makes_the_gradients_asked_for(frozen: int) -> None:
    """Strided rows, a transposed weight, and the expanded gradient that a sum sends back."""
    x, weight, bias = (torch.randn(shape, device=DEVICE) for shape in ((6, 4, 3), (6, 7), (7,)))
    x, weight = x.transpose(0, 2), weight.T
    leaves = [operand.requires_grad_() for number, operand in enumerate((x, weight, bias)) if number != frozen]
    expected = linear_reference(x, weight, bias, "gelu")
    with use_backend("fused"):
        found = linear(x, weight, bias, "gelu")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves))


def test_wrong_arguments_are_named() -> None:
    x, weight, bias = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)
    with pytest.raises(ValueError, match=r"linear: weight has shape \[3, 4\], expected \[3, 3\]"):
        linear(x, weight.T, bias)
    with pytest.raises(ValueError, match=r"linear: bias has shape \[3\], expected \[4\]"):
        linear(x, weight, bias[:3])
    with pytest.raises(ValueError, match="linear: activation is 'relu', expected one of"):
        linear(x, weight, bias, "relu")  # type: ignore[arg-type]
    with use_backend("fused"), pytest.raises(ValueError, match=r"linear: weight is torch\.bfloat16, expected torch\.f"):
        linear(x.to("meta"), weight.to("meta", torch.bfloat16), bias.to("meta"))
