"""The masked autoencoder's loss: error against patches normalised by their own mean and variance."""

import math
from typing import Any

import pytest
import torch
from cacophony.kernels.backend import use_backend
from cacophony.kernels.patch_mse import MAX_WIDTH, patch_mse
from cacophony.kernels.triton_runtime import HAS_TRITON, record_launches
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


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


def single(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`case` in float32, where kernels run; the prediction asks for its gradient."""
    prediction, target, selected = case(*shape)
    return prediction.float().to(DEVICE).requires_grad_(), target.float().to(DEVICE), selected.to(DEVICE)


def fused(prediction: Tensor, *arguments: Any, upstream: float = 1.0, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient by the kernels."""
    with use_backend("fused"):
        loss = patch_mse(prediction, *arguments, **options)
    return loss.detach(), torch.autograd.grad(loss, prediction, torch.full_like(loss, upstream))[0]


def exact(prediction: Tensor, *arguments: Any, upstream: float = 1.0, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the reference in float64, at the same numbers."""
    leaf = prediction.detach().double().requires_grad_()
    arguments = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)
    with use_backend("reference"):
        loss = patch_mse(leaf, *arguments, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf, torch.full_like(loss, upstream))[0]


def assert_close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], rtol: float = 1e-5) -> None:
    """Budget of float32: rounding errors of 2e-7 at most in a handful of steps, against the largest of each tensor."""
    for one, other in zip(found, expected, strict=True):
        largest = float(other.abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one.double(), other, rtol=0, atol=rtol * largest)


@needs_triton
@pytest.mark.parametrize("upstream", [1.0, -3.0, 0.0])
@pytest.mark.parametrize("unbiased", [True, False])
def test_kernels_give_loss_and_gradient_for_any_upstream_scalar(upstream: float, unbiased: bool) -> None:
    for shape in ((11,), (3, 5)):
        arguments = (*single(*shape), 7.0)
        options = {"upstream": upstream, "unbiased": unbiased}
        assert_close(fused(*arguments, **options), exact(*arguments, **options))


@needs_triton
def test_a_denominator_is_a_number_or_a_scalar_on_the_device() -> None:
    prediction, target, selected = single(6)
    expected = exact(prediction, target, selected, 3)
    for denominator in (3, 3.0, torch.tensor(3), torch.tensor(3.0), torch.tensor(3.0, dtype=torch.float64)):
        if isinstance(denominator, Tensor):
            denominator = denominator.to(DEVICE)
        assert_close(fused(prediction, target, selected, denominator), expected)


@needs_triton
@pytest.mark.parametrize("denominator", [0.0, 4.0])
def test_kernels_with_nothing_to_score_do_as_the_reference(denominator: float) -> None:
    for rows in (3, 0):
        prediction, target, _ = single(rows)
        nothing = torch.zeros(rows, dtype=torch.bool, device=DEVICE)
        (loss, gradient), (expected, _) = (f(prediction, target, nothing, denominator) for f in (fused, exact))
        torch.testing.assert_close(loss.double(), expected, equal_nan=True)
        assert torch.equal(gradient, torch.zeros_like(prediction))


@needs_triton
def test_kernels_do_not_read_what_is_not_selected() -> None:
    prediction, target, selected = single(10)
    loss, gradient = fused(prediction, target, selected, 5.0)
    poisoned = prediction.detach().masked_fill(~selected[:, None], torch.nan).requires_grad_()
    again = fused(poisoned, target.masked_fill(~selected[:, None], torch.inf), selected, 5.0)
    assert torch.equal(again[0], loss)
    assert torch.equal(again[1], gradient)
    assert torch.equal(gradient.ne(0).any(dim=1), selected)


@needs_triton
@pytest.mark.parametrize("level", [-1.4025851, 0.0, 12345.678, -1e30])
def test_kernels_see_a_constant_patch_as_zero_at_any_level(level: float) -> None:
    prediction, _, _ = single(5)
    every = torch.ones(5, dtype=torch.bool, device=DEVICE)
    loss, gradient = fused(prediction, torch.full_like(prediction, level), every, 5.0)
    torch.testing.assert_close(loss, prediction.detach().square().mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, prediction.detach() * 2 / prediction.numel(), rtol=1e-6, atol=0)


@needs_triton
def test_kernels_lose_nothing_on_patches_far_from_zero() -> None:
    prediction, _, selected = single(9)
    target = torch.randn_like(prediction) + 1e4
    assert_close(fused(prediction, target, selected, 4.0), exact(prediction, target, selected, 4.0))


@needs_triton
def test_micro_batches_of_kernels_add_up_in_the_gradient() -> None:
    prediction, target, selected = single(12)
    denominator = selected.sum()
    with use_backend("fused"):
        for rows in (slice(0, 1), slice(1, 9), slice(9, 12)):
            patch_mse(prediction[rows], target[rows], selected[rows], denominator).backward()
    assert prediction.grad is not None
    _, expected = exact(prediction, target, selected, denominator)
    torch.testing.assert_close(prediction.grad.double(), expected, rtol=1e-5, atol=1e-8)


@needs_triton
def test_backward_can_be_repeated_and_leaves_earlier_gradients_alone() -> None:
    arguments = (*single(9), 4.0)
    with use_backend("fused"):
        loss = patch_mse(*arguments)
    found = []
    for upstream in (3.0, 1.0, -0.5):
        scalar = torch.tensor(upstream, device=DEVICE)
        found += torch.autograd.grad(loss, arguments[0], scalar, retain_graph=True)
    for gradient, upstream in zip(found, (3.0, 1.0, -0.5), strict=True):
        assert_close((loss.detach(), gradient), (exact(*arguments)[0], exact(*arguments, upstream=upstream)[1]))


@needs_triton
def test_a_bfloat16_prediction_has_a_bfloat16_gradient() -> None:
    prediction, target, selected = single(9)
    prediction = prediction.detach().bfloat16().requires_grad_()
    loss, gradient = fused(prediction, target, selected, 4.0)
    assert (loss.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    expected_loss, expected = exact(prediction, target, selected, 4.0)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected, rtol=2**-7, atol=0)  # one ulp: the interpreter truncates


@needs_triton
def test_kernels_take_any_strides() -> None:
    prediction, target, selected = single(4, 6)
    turned = prediction.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    arguments = (target, selected.t().contiguous().t(), 4.0)
    for one, other in zip(fused(turned, *arguments), fused(prediction, *arguments), strict=True):
        assert torch.equal(one, other)


@needs_triton
def test_backward_is_one_launch_and_no_gradient_is_written_without_need() -> None:
    prediction, target = (torch.empty(64, 256, device="meta") for _ in range(2))
    selected, denominator = torch.ones(64, dtype=torch.bool, device="meta"), torch.ones((), device="meta")

    def touched(launch: Any) -> int:
        return sum(argument.numel() for argument in launch.arguments if isinstance(argument, Tensor))

    with use_backend("fused"), record_launches() as launches:
        patch_mse(prediction, target, selected, denominator)
        assert len(launches) == 2
        loss = patch_mse(prediction.requires_grad_(), target, selected, denominator)
        assert len(launches) == 4
        loss.backward()
    assert len(launches) == 5
    assert touched(launches[2]) - touched(launches[0]) == prediction.numel()


def score(**changes: Any) -> None:
    arguments = dict(zip(("prediction", "target", "selected"), single(3), strict=True))
    patch_mse(**{**arguments, "denominator": 1.0, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": torch.ones(3, 255)}, r"target has shape \[3, 255\], expected \[3, 256\]"),
        ({"target": torch.ones(3, 256, requires_grad=True)}, "target asks for a gradient"),
        ({"selected": torch.ones(3)}, "selected is torch.float32, expected torch.bool"),
        ({"selected": torch.ones(3, 1, dtype=torch.bool)}, r"selected has shape \[3, 1\], expected \[3\]"),
        (
            {"selected": torch.ones(3, dtype=torch.bool, device="meta")},
            "selected is on meta, expected .* as prediction",
        ),
        ({"denominator": torch.ones(1)}, r"denominator has shape \[1\], expected \[\]"),
        ({"denominator": torch.ones((), requires_grad=True)}, "denominator asks for a gradient"),
        ({"prediction": torch.ones(3, 1), "target": torch.ones(3, 1)}, "prediction is 1 wide, expected at least 2"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    changes = {n: v.to(DEVICE) if isinstance(v, Tensor) and v.device.type == "cpu" else v for n, v in changes.items()}
    with pytest.raises(ValueError, match=f"patch_mse: {message}"):
        score(**changes)


@needs_triton
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prediction": torch.ones(3, 256, dtype=torch.float16)},
            "prediction is torch.float16, expected torch.float32",
        ),
        ({"target": torch.ones(3, 256, dtype=torch.float64)}, "target is torch.float64"),
        (dict.fromkeys(("prediction", "target"), torch.ones(3, MAX_WIDTH + 1)), "expected at most 4096"),
    ],
)
def test_what_the_kernels_do_not_take_is_named(changes: dict[str, Any], message: str) -> None:
    with use_backend("fused"), pytest.raises(ValueError, match=f"patch_mse: .*{message}"):
        score(**{name: value.to(DEVICE) for name, value in changes.items()})
