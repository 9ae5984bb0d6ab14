"""Activations against the mathematical library; their backward against autograd, and the value it makes again."""

import math
from typing import get_args

import pytest
import torch
from cacophony.kernels.activation import Activation, activation, activation_backward
from cacophony.kernels.backend import Backend, use_backend
from cacophony.kernels.triton_runtime import HAS_TRITON

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS: tuple[Activation, ...] = get_args(Activation)
FORMULAS = {
    "silu": lambda y: y / (1.0 + math.exp(-y)),
    "gelu": lambda y: 0.5 * y * (1.0 + math.erf(y / math.sqrt(2.0))),
}
BACKENDS = ["reference", pytest.param("fused", marks=pytest.mark.skipif(not HAS_TRITON, reason="no Triton"))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_formula(backend: Backend, kind: Activation) -> None:
    pre = torch.linspace(-9, 9, 37, device=DEVICE)
    with use_backend(backend):
        out = activation(pre, kind)
    assert out.tolist() == pytest.approx([FORMULAS[kind](y) for y in pre.tolist()], rel=2e-6, abs=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_is_that_of_autograd_and_makes_the_value_again(backend: Backend, kind: Activation) -> None:
    """Of tensors whose rows are strided, too."""
    wide = torch.randn(7, 2, 24, device=DEVICE)
    pre, d_out = wide.unbind(1)
    exact = pre.double().requires_grad_()
    with use_backend("reference"):
        activation(exact, kind).backward(d_out.double())
    with use_backend(backend):
        d_pre, out, sums = activation_backward(d_out, pre, kind)
        assert torch.equal(out, activation(pre, kind))
    assert exact.grad is not None
    torch.testing.assert_close(d_pre, exact.grad.float(), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(sums, exact.grad.sum(0).float(), rtol=2e-6, atol=4e-6)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("rows", [0, 1, 37])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_of_the_gradient_are_those_of_its_rows_in_float32(backend: Backend, rows: int) -> None:
    """Of bfloat16, too, whose own sum would stop growing; of more columns than a program has."""
    pre, d_out = torch.zeros(rows, 300, dtype=torch.bfloat16), torch.full((rows, 300), 2.0**-9, dtype=torch.bfloat16)
    with use_backend(backend):
        _, _, sums = activation_backward(d_out.to(DEVICE), pre.to(DEVICE), "silu")
    assert sums.dtype == torch.float32
    assert sums.tolist() == [rows * 2.0**-10] * 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_values_are_finite(backend: Backend, kind: Activation, dtype: torch.dtype) -> None:
    pre = torch.tensor([-1e30, -1e4, -100.0, 0.0, 1e4, 1e30], device=DEVICE, dtype=dtype)
    with use_backend(backend):
        d_pre, out, _ = activation_backward(torch.ones_like(pre), pre, kind)
    assert out.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.0, *pre[-2:].tolist()])
    assert d_pre.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: Activation) -> None:
    pre = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda pre: activation(pre, kind), [pre])


def test_wrong_arguments_are_named() -> None:
    pre = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="activation: kind is 'relu', expected one of"):
        activation(pre, "relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activation_backward: d_out has shape"):
        activation_backward(torch.zeros(3, 2), pre, "silu")
    with pytest.raises(ValueError, match=r"activation_backward: d_out is torch\.float64"):
        activation_backward(pre.double(), pre, "silu")
    with use_backend("fused"), pytest.raises(ValueError, match=r"activation: pre is torch\.int64"):
        activation(torch.zeros(2, device="meta", dtype=torch.int64), "gelu")
