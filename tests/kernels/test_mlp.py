"""The feed-forward layer against its two linear maps, under autocast, and the arguments it refuses."""

import pytest
import torch
from cacophony.kernels.activation import Activation, activation_reference
from cacophony.kernels.backend import use_backend
from cacophony.kernels.linear_choice import use_linear_provider
from cacophony.kernels.mlp import mlp, mlp_reference
from cacophony.kernels.triton_runtime import HAS_TRITON
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = (2, 9, 24), (40, 24), (40,), (24, 40), (24,)


def operands(dtype: torch.dtype = torch.float32, device: torch.device = DEVICE) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, device=device).requires_grad_() for shape in SHAPES]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", ["silu", "gelu"])
def test_reference_is_two_linear_maps(kind: Activation, residual: bool) -> None:
    x, weight_in, bias_in, weight_out, bias_out = made = operands(torch.float64, torch.device("cpu"))
    inside = torch.einsum("bld,md->blm", x, weight_in) + bias_in
    expected = torch.einsum("blm,dm->bld", activation_reference(inside, kind), weight_out) + bias_out
    torch.testing.assert_close(mlp(*made, activation=kind, residual=residual), x + expected if residual else expected)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("provider", ["cublas", "triton"])
def test_fused_follows_autocast_like_the_reference(provider: str) -> None:
    """In float16, to which Triton's interpreter rounds as a GPU does, with float32 parameters and their gradients."""
    made = operands()
    with torch.autocast(DEVICE.type, torch.float16):
        expected = mlp_reference(*made, activation="silu")
        with use_backend("fused"), use_linear_provider(provider):
            found = mlp(*made, activation="silu")
    assert found.dtype == expected.dtype == torch.float16
    exact = mlp_reference(*made, activation="silu")
    cotangent = torch.randn_like(exact)
    for output, other, truth in zip(
        (found, *torch.autograd.grad(found, made, cotangent.half())),
        (expected, *torch.autograd.grad(expected, made, cotangent.half())),
        (exact, *torch.autograd.grad(exact, made, cotangent)),
        strict=True,
    ):
        error, reference_error = (float((t.float() - truth).detach().abs().max()) for t in (output, other))
        assert 0.0 < error <= 1.5 * reference_error


def test_wrong_arguments_are_named() -> None:
    x, weight_in, bias_in, weight_out, bias_out = (torch.zeros(shape) for shape in SHAPES)
    with pytest.raises(ValueError, match=r"mlp: weight_out has shape \[40, 24\], expected \[24, 40\]"):
        mlp(x, weight_in, bias_in, weight_out.T, bias_out, "silu")
    with pytest.raises(ValueError, match=r"mlp: bias_in has shape \[24\], expected \[40\]"):
        mlp(x, weight_in, bias_out, weight_out, bias_out, "silu")
    with pytest.raises(ValueError, match="mlp: activation is 'relu', expected one of"):
        mlp(x, weight_in, bias_in, weight_out, bias_out, "relu")  # type: ignore[arg-type]
    x, weight_in, *others = (tensor.to("meta") for tensor in (x, weight_in, bias_in, weight_out, bias_out))
    with use_backend("fused"), pytest.raises(ValueError, match=r"mlp: weight_in is torch\.bfloat16, expected torch\.f"):
        mlp(x, weight_in.bfloat16(), *others, activation="silu")
