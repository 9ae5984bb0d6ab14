"""Norm and perturbation over flat buffers: what a step along the gradient becomes in bfloat16; wrong arguments."""

import math

import pytest
import torch
from cacophony.kernels.backend import Backend, use_backend
from cacophony.kernels.flat_buffers import SEGMENT
from cacophony.kernels.sam import gradient_norm, sam_perturb_
from cacophony.kernels.triton_runtime import HAS_TRITON, INTERPRETING
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ["reference", *(["fused"] if HAS_TRITON else [])]
RHO, PARAMETERS = 0.075, 287_000_000

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def assert_rounded(copy: Tensor, values: Tensor, backend: Backend) -> None:
    """Hold a bfloat16 copy to PyTorch's rounding; Triton's interpreter cuts off instead, which a GPU does not."""
    if backend == "fused" and INTERPRETING:
        torch.testing.assert_close(copy.float(), values, rtol=2.0**-7, atol=0)
    else:
        assert torch.equal(copy, values.bfloat16())


@every_backend
@pytest.mark.parametrize("elements", [0, 1, 5, 8192, 30_001])
def test_the_norm_of_whole_numbers_is_exact(elements: int, backend: Backend) -> None:
    gradient = torch.randint(-3, 4, (elements,), device=DEVICE).float()
    with use_backend(backend):
        norm = gradient_norm(gradient)
    assert norm.shape == ()
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(math.sqrt(float(gradient.double().square().sum())), rel=1e-7)


def test_the_norm_of_millions_of_numbers_is_that_of_float64() -> None:
    """Budget 1e-6, ten roundings: added up one after another in float32, as a CPU does a row, they are 1e-4 off."""
    gradient = 0.01 * torch.randn(5_000_000, device=DEVICE)
    with use_backend("reference"):
        assert float(gradient_norm(gradient)) == pytest.approx(float(gradient.double().norm()), rel=1e-6)


@every_backend
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_shows_in_the_norm(value: float, backend: Backend) -> None:
    gradient = torch.ones(20_000, device=DEVICE)
    gradient[17_777] = value
    with use_backend(backend):
        assert not gradient_norm(gradient).isfinite()


def weights(elements: int) -> Tensor:
    """Weights as trained ones are: of matrices at two scales."""
    scale = torch.where(torch.arange(elements) % 3 == 0, 0.04, 0.02)
    return torch.randn(elements) * scale


def applied_share(master: Tensor, rho: float) -> float:
    """How far the step in a bfloat16 copy goes along rho · g / ‖g‖, g as long as the paper's gradient is."""
    direction = torch.randn(len(master)) * torch.randn(len(master)).exp()
    norm = torch.linalg.vector_norm(direction) * math.sqrt(PARAMETERS / len(master))
    intended = direction * (rho / norm)
    narrow, wide = torch.empty(len(master), dtype=torch.bfloat16), torch.empty(0)
    sam_perturb_(master, direction, norm, narrow, wide, rho=rho)
    step = narrow.float() - master.bfloat16().float()
    return float(step @ intended / intended.square().sum())


def test_a_bfloat16_copy_takes_the_whole_step_at_the_papers_size() -> None:
    """At least 0.98 of it, though a weight moves by 4e-6, far less than bfloat16 can say: rounding is a dither."""
    assert 0.98 < applied_share(weights(4096 * SEGMENT), RHO) < 1.02


def test_weights_stored_in_bfloat16_would_not() -> None:
    """Why the master is float32: nearly every weight would be rounded back to where it was."""
    assert applied_share(weights(4096 * SEGMENT).bfloat16().float(), RHO) < 0.9


@every_backend
def test_rounding_of_the_copy_is_pytorchs(backend: Backend) -> None:
    master = torch.randn(4 * SEGMENT, device=DEVICE)
    narrow = torch.empty(3 * SEGMENT, dtype=torch.bfloat16, device=DEVICE)
    wide = torch.empty(SEGMENT, device=DEVICE)
    direction = torch.zeros_like(master)
    with use_backend(backend):
        sam_perturb_(master, direction, torch.zeros((), device=DEVICE), narrow, wide, rho=1.0)
    assert_rounded(narrow, master[: 3 * SEGMENT], backend)
    assert torch.equal(wide, master[3 * SEGMENT :])


@every_backend
@pytest.mark.parametrize("norm", [0.0, math.inf, math.nan])
def test_without_a_usable_norm_nothing_moves_even_beside_numbers_that_are_not_finite(
    norm: float, backend: Backend
) -> None:
    master = torch.randn(2 * SEGMENT, device=DEVICE)
    direction = torch.full_like(master, math.nan if norm else 0.0)
    copy = torch.empty(SEGMENT, dtype=torch.bfloat16, device=DEVICE), torch.empty(SEGMENT, device=DEVICE)
    with use_backend(backend):
        sam_perturb_(master, direction, torch.tensor(norm, device=DEVICE), *copy, rho=0.1)
    assert_rounded(copy[0], master[:SEGMENT], backend)
    assert torch.equal(copy[1], master[SEGMENT:])
    assert not direction.any()


def test_wrong_arguments_are_named() -> None:
    master, norm = torch.zeros(2 * SEGMENT), torch.ones(())
    narrow, wide = torch.zeros(SEGMENT, dtype=torch.bfloat16), torch.zeros(SEGMENT)
    with pytest.raises(ValueError, match=r"gradient_norm: gradient has shape \[2, 3\]"):
        gradient_norm(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"sam_perturb: master has shape \[5\].*multiple of 1024"):
        sam_perturb_(torch.zeros(5), torch.zeros(5), norm, narrow, wide, rho=0.1)
    with pytest.raises(ValueError, match=r"sam_perturb: narrow has shape \[7\]"):
        sam_perturb_(master, master, norm, narrow[:7], wide, rho=0.1)
    with pytest.raises(ValueError, match=r"sam_perturb: wide has shape \[7\], expected \[1024\]"):
        sam_perturb_(master, master, norm, narrow, wide[:7], rho=0.1)
    with pytest.raises(ValueError, match=r"sam_perturb: direction is torch\.float64"):
        sam_perturb_(master, master.double(), norm, narrow, wide, rho=0.1)
    with pytest.raises(ValueError, match=r"sam_perturb: norm has shape \[1\]"):
        sam_perturb_(master, master.clone(), norm[None], narrow, wide, rho=0.1)
