"""The masked autoencoder's loss: error against patches normalised by their own mean and variance."""

import math

import pytest
import torch
from cacophony.kernels.patch_mse import patch_mse
from torch import Tensor


def case(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target with every patch's own level and contrast, and a selection of about half."""
    prediction = torch.randn(*shape, 256, dtype=torch.float64)
    target = torch.randn(*shape, 256, dtype=torch.float64) * torch.rand(*shape, 1) * 3 + torch.randn(*shape, 1)
    return prediction, target, torch.rand(shape) < 0.5


def slow(prediction: Tensor, target: Tensor, selected: Tensor, denominator: float, divisor: int) -> float:
    total = 0.0
    for p, t, s in zip(prediction.view(-1, 256), target.view(-1, 256), selected.flatten(), strict=True):
        if s:
            pixels = t.tolist()
            mean = math.fsum(pixels) / 256
            variance = math.fsum((x - mean) ** 2 for x in pixels) / divisor
            errors = (
                (a - (b - mean) / math.sqrt(variance + 1e-6)) ** 2 for a, b in zip(p.tolist(), pixels, strict=True)
            )
            total += math.fsum(errors) / 256
    return total / denominator


@pytest.mark.parametrize(("unbiased", "divisor"), [(True, 255), (False, 256)])
def test_equals_the_slow_definition(unbiased: bool, divisor: int) -> None:
    for shape in ((11,), (3, 5)):
        prediction, target, selected = case(*shape)
        loss = patch_mse(prediction, target, selected, 7.0, unbiased=unbiased)
        assert float(loss) == pytest.approx(slow(prediction, target, selected, 7.0, divisor), rel=1e-12)


def test_the_default_variance_is_the_unbiased_one() -> None:
    arguments = (*case(4), 4.0)
    assert torch.equal(patch_mse(*arguments), patch_mse(*arguments, unbiased=True))
    assert not torch.equal(patch_mse(*arguments), patch_mse(*arguments, unbiased=False))


def test_micro_batches_add_up_to_the_batch() -> None:
    prediction, target, selected = case(12)
    prediction.requires_grad_()
    denominator = selected.sum()
    whole = patch_mse(prediction, target, selected, denominator)
    parts = [
        patch_mse(prediction[rows], target[rows], selected[rows], denominator)
        for rows in (slice(0, 1), slice(1, 9), slice(9, 12))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=0)
    one, other = (torch.autograd.grad(loss, prediction)[0] for loss in (whole, torch.stack(parts).sum()))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_patches_that_are_not_selected_do_not_count() -> None:
    prediction, target, selected = case(10)
    loss = patch_mse(prediction, target, selected, 5.0)
    poisoned = prediction.masked_fill(~selected[:, None], torch.nan).requires_grad_()
    target = target.masked_fill(~selected[:, None], torch.nan)
    again = patch_mse(poisoned, target, selected, 5.0)
    assert torch.equal(again, loss)
    again.backward()
    assert poisoned.grad is not None
    assert torch.equal(poisoned.grad.ne(0).any(dim=1), selected)


@pytest.mark.filterwarnings("ignore:var\\(\\)")  # torch warns about the variance of no patch; the values are right
def test_no_selected_patch_has_no_loss_and_no_gradient() -> None:
    prediction, target, _ = case(3)
    prediction.requires_grad_()
    loss = patch_mse(prediction, target, torch.zeros(3, dtype=torch.bool), 4.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert prediction.grad is not None
    assert not bool(prediction.grad.any())


def test_level_and_contrast_of_a_target_do_not_matter() -> None:
    prediction, target, _ = case(6)
    every = torch.ones(6, dtype=torch.bool)
    loss = patch_mse(prediction, target, every, 6.0, eps=0.0)
    torch.testing.assert_close(patch_mse(prediction, 5 * target - 3, every, 6.0, eps=0.0), loss, rtol=1e-10, atol=0)
    exact = (target - target.mean(dim=1, keepdim=True)) / target.std(dim=1, keepdim=True)
    assert float(patch_mse(exact, target, every, 6.0, eps=0.0)) < 1e-25


def test_gradient() -> None:
    prediction, target, selected = case(3)
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: patch_mse(p, target, selected, 2.0), (prediction,), fast_mode=True)


@pytest.mark.parametrize("level", [-1.4025851, 0.0, 1e4])
def test_a_constant_patch_is_finite(level: float) -> None:
    """Silence is one level, the log-mel floor: its normalised target is 0."""
    prediction = torch.randn(2, 256, requires_grad=True)
    loss = patch_mse(prediction, torch.full((2, 256), level), torch.ones(2, dtype=torch.bool), 2.0)
    loss.backward()
    if level < 1e3:  # float32 rounds the mean, at 1e4 by up to 1e-3, which is as large as sqrt(eps)
        torch.testing.assert_close(loss.detach(), prediction.detach().square().mean(), rtol=1e-3, atol=0)
    assert bool(loss.isfinite())
    assert prediction.grad is not None
    assert bool(prediction.grad.isfinite().all())


def test_half_precision_is_computed_in_float32() -> None:
    prediction, target, selected = case(8)
    prediction, target = prediction.bfloat16(), target.bfloat16()
    loss = patch_mse(prediction, target, selected, 3.0)
    assert loss.dtype == torch.float32
    assert loss.dim() == 0
    expected = patch_mse(prediction.double(), target.double(), selected, 3.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
