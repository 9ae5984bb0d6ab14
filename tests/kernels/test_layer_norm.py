"""Layer normalisation against the textbook formula in float64; what the fused forms refuse and leave alone.

That the kernels are right on every case of the SPECs is shown in test_specs.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cacophony.kernels.backend import use_backend
from cacophony.kernels.dropout import DropoutKey, dropout
from cacophony.kernels.layer_norm import add_layer_norm, layer_norm
from cacophony.kernels.layout import Packed, pad, padded_layout, unpad
from cacophony.kernels.triton_runtime import HAS_TRITON, record_launches
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PACKED = Packed.from_lengths([4, 0, 7, 2], DEVICE)
KEY = DropoutKey(rate=0.6, seed=2**31 + 5, step=3, sample_index=torch.tensor([8, 1, 2**33, 4]), site=17)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


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


def parameters(width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(width, device=DEVICE, dtype=dtype), torch.randn(width, device=DEVICE, dtype=dtype)


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype).requires_grad_()


def test_the_sum_is_that_of_separate_ops() -> None:
    x, residual, weight, bias = (torch.randn(shape).double() for shape in ((13, 24), (13, 24), (24,), (24,)))
    layout = Packed.from_lengths([4, 0, 7, 2])
    normed, total = add_layer_norm(x, residual, weight, bias, 1e-5, dropout_key=KEY, layout=layout)
    expected = residual + dropout(x, KEY, layout)
    assert torch.equal(total, expected)
    torch.testing.assert_close(normed, slow(expected, weight, bias, 1e-5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", pytest.param("fused", marks=needs_triton)])
def test_dtypes(backend: Any) -> None:
    """The normed and the sum have the stream's dtype, the normed another where it is asked for."""
    half, single = torch.bfloat16, torch.float32
    weight, bias = parameters(48)
    with use_backend(backend):
        assert layer_norm(tokens(3, 48, dtype=half), weight, bias, 1e-6).dtype == half
        assert layer_norm(tokens(3, 48), weight, bias, 1e-6, dtype=half).dtype == half
        for stream, normed_dtype in ((half, None), (single, None), (single, half)):
            x, residual = tokens(3, 48, dtype=half), tokens(3, 48, dtype=stream)
            normed, total = add_layer_norm(x, residual, weight, bias, 1e-6, dtype=normed_dtype)
            assert (normed.dtype, total.dtype) == (normed_dtype or stream, stream)
            normed.sum().backward()
            assert x.grad is not None
            assert x.grad.dtype == half


@needs_triton
def test_layouts_lose_the_same_features_as_dropout_alone() -> None:
    x, (weight, bias) = tokens(PACKED.total, 96), parameters(96)
    padded = padded_layout(PACKED)
    with use_backend("fused"):
        _, one = add_layer_norm(x, torch.zeros_like(x), weight, bias, 1e-5, dropout_key=KEY, layout=PACKED)
        slots = pad(x, PACKED)
        _, other = add_layer_norm(slots, torch.zeros_like(slots), weight, bias, 1e-5, dropout_key=KEY, layout=padded)
    assert torch.equal(one, unpad(other, PACKED))
    torch.testing.assert_close(one, dropout(x, KEY, PACKED), rtol=1e-6, atol=0)


@needs_triton
@pytest.mark.parametrize("used", ["normed", "sum"])
def test_an_output_nobody_uses_has_no_part_in_the_gradients(used: str) -> None:
    gradients = []
    x, residual = tokens(5, 96), tokens(5, 96)
    weight, bias = (p.requires_grad_() for p in parameters(96))
    for backend in ("reference", "fused"):
        with use_backend(backend):
            normed, total = add_layer_norm(x, residual, weight, bias, 1e-5)
        output = normed if used == "normed" else total
        inputs = (x, residual, weight, bias)
        gradients.append(torch.autograd.grad(output.square().sum(), inputs, materialize_grads=True))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@needs_triton
def test_inputs_and_gradients_may_lie_anyhow_in_memory() -> None:
    wide, (weight, bias) = tokens(96, 7, 2), parameters(96)
    x, gradient = wide.movedim(0, -1), torch.randn(96, device=DEVICE).expand(7, 2, 96)
    results = []
    for backend in ("reference", "fused"):
        with use_backend(backend):
            out = layer_norm(x, weight, bias, 1e-6)
        results.append((out, *torch.autograd.grad(out, wide, gradient)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@needs_triton
def test_one_launch_forward_two_backward() -> None:
    x, residual = (torch.empty(64, 768, device="meta", requires_grad=True) for _ in range(2))
    weight, bias = (torch.empty(768, device="meta", requires_grad=True) for _ in range(2))
    with use_backend("fused"), record_launches() as launches:
        normed, total = add_layer_norm(x, residual, weight, bias, 1e-5)
        assert len(launches) == 1
        torch.autograd.backward([normed, total], [torch.empty_like(normed)] * 2)
    assert len(launches) == 3


@needs_triton
def test_a_second_derivative_is_refused() -> None:
    x, (weight, bias) = tokens(3, 48), parameters(48)
    with use_backend("fused"):
        (gradient,) = torch.autograd.grad(layer_norm(x, weight, bias, 1e-6).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def run(op: Callable[..., Any], **changes: Any) -> None:
    arguments: dict[str, Any] = {"x": tokens(13, 48), "weight": parameters(48)[0], "bias": parameters(48)[1]}
    if op is add_layer_norm:
        arguments["residual"] = tokens(13, 48)
    op(**arguments | {"eps": 1e-6} | changes)


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        (layer_norm, {"weight": torch.ones(47)}, r"weight has shape \[47\], expected \[48\]"),
        (layer_norm, {"bias": torch.ones(1)}, r"bias has shape \[1\], expected \[48\]"),
        (layer_norm, {"bias": torch.ones(48, device="meta")}, r"bias is on meta, expected .* as x"),
        (add_layer_norm, {"residual": torch.ones(13, 47)}, r"residual has shape \[13, 47\], expected \[13, 48\]"),
        (add_layer_norm, {"residual": torch.ones(13, 48, device="meta")}, r"residual is on meta, expected .* as x"),
        (add_layer_norm, {"dropout_key": KEY}, "layout is None, expected .* beside dropout_key"),
        (add_layer_norm, {"layout": Packed.from_lengths([4, 5])}, r"x has shape \[13, 48\], expected \[9, 'D'\]"),
    ],
)
def test_wrong_arguments_are_named(op: Callable[..., Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{op.__name__}: {message}"):
        run(op, **changes)


@needs_triton
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(13, 48, dtype=torch.float64)}, "x is torch.float64, expected torch.float32, torch.bfloat16"),
        ({"x": torch.zeros(13, 48, dtype=torch.int64)}, "x is torch.int64"),
        ({"bias": torch.zeros(48, dtype=torch.float16)}, "bias is torch.float16, expected torch.float32 as weight"),
        ({"dtype": torch.float64}, "dtype is torch.float64"),
        (
            {"x": torch.zeros(1, 8193), "weight": torch.ones(8193), "bias": torch.ones(8193)},
            "x is 8193 wide, expected 1 to 8192",
        ),
    ],
)
def test_what_the_kernels_do_not_take_is_named(changes: dict[str, Any], message: str) -> None:
    changes = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in changes.items()}
    with use_backend("fused"), pytest.raises(ValueError, match=f"layer_norm: {message}"):
        run(layer_norm, **changes)
