"""The schedule, and AdamW with sharpness-aware minimisation against a literal oracle."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cacophony.engine.config import UpdateConfig
from cacophony.engine.objective import Report
from cacophony.engine.update import Updater, gradient_norm, learning_rate
from cacophony.errors import InputError
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

CONFIG = UpdateConfig(
    learning_rate=0.03, final_learning_rate=0.01, warmup_steps=1, weight_decay=0.1, beta1=0.8, beta2=0.95, rho=0.2
)
STEPS = 5
Gradient = Callable[[], Report]


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 1)).double()


def loss_of(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(11, 3, dtype=torch.float64, generator=generator)
    return (model(x)[:, 0] - x.prod(dim=1)).square().mean()


def gradient_of(model: nn.Module, calls: list[list[Tensor]] | None = None) -> Gradient:
    """The gradient of `loss_of`; notes the weights of each call in `calls`."""

    def gradient() -> Report:
        if calls is not None:
            calls.append([p.detach().clone() for p in model.parameters()])
        loss = loss_of(model)
        loss.backward()
        return Report({"loss": loss.detach()}, 0, 0)

    return gradient


def snapshot(updater: Updater) -> dict[str, Tensor]:
    tensors = dict(updater.model.state_dict()) | updater.state_tensors()
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(before: dict[str, Tensor], after: dict[str, Tensor]):
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@given(st.integers(2, 400), st.data())
def test_the_schedule_rises_to_the_peak_and_falls_to_the_floor(steps: int, data: st.DataObject):
    warmup = data.draw(st.integers(0, steps - 2))
    config = replace(CONFIG, warmup_steps=warmup)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    assert rates[0] == pytest.approx(0.03 / max(warmup, 1))
    assert rates[max(warmup - 1, 0)] == pytest.approx(0.03)
    assert rates[warmup] == pytest.approx(0.03)
    assert rates[-1] == pytest.approx(0.01)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    middle = (warmup + steps - 1) / 2
    if middle.is_integer():
        assert rates[int(middle)] == pytest.approx(0.02)


def test_the_warm_up_is_linear():
    config = replace(CONFIG, warmup_steps=10)
    assert [learning_rate(step, 100, config) for step in range(10)] == pytest.approx([0.003 * k for k in range(1, 11)])


def test_the_last_step_has_the_final_rate_even_right_after_the_warm_up():
    assert learning_rate(10, 11, replace(CONFIG, warmup_steps=10)) == pytest.approx(0.01)


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_updates_equal_sam_and_adamw_written_out(rho: float):
    """Budget 1e-6: the oracle is float64, the updater's norm float32."""
    config = replace(CONFIG, rho=rho)
    model, twin = network(), network()
    updater = Updater(model, config, STEPS)
    weights = list(twin.parameters())
    first, second = [torch.zeros_like(p) for p in weights], [torch.zeros_like(p) for p in weights]
    for step in range(2):
        report, outcome = updater.update(step, gradient_of(model))

        loss = loss_of(twin)
        gradients = torch.autograd.grad(loss, weights)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        with torch.no_grad():
            old = [p.clone() for p in weights]
            for p, g in zip(weights, gradients, strict=True):
                p += rho * g / norm
        sharp_loss = loss_of(twin)
        gradients = torch.autograd.grad(sharp_loss, weights)
        rate = learning_rate(step, STEPS, config)
        with torch.no_grad():
            for p, w, g, m, v in zip(weights, old, gradients, first, second, strict=True):
                m.mul_(config.beta1).add_(g, alpha=1 - config.beta1)
                v.mul_(config.beta2).add_(g * g, alpha=1 - config.beta2)
                m_hat, v_hat = m / (1 - config.beta1 ** (step + 1)), v / (1 - config.beta2 ** (step + 1))
                p.copy_(w - rate * (m_hat / (v_hat.sqrt() + config.eps) + config.weight_decay * w))

        assert float(report.losses["loss"]) == pytest.approx(float(loss.detach()), rel=1e-6)
        assert outcome.gradient_norm == pytest.approx(norm, rel=1e-6)
        assert outcome.learning_rate == rate
        if outcome.sam_loss is not None:
            assert float(outcome.sam_loss) == pytest.approx(float(sharp_loss.detach()), rel=1e-6)
        for p, q in zip(model.parameters(), weights, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    state = updater.state_tensors()
    for (name, _), m, v in zip(model.named_parameters(), first, second, strict=True):
        torch.testing.assert_close(state[f"exp_avg.{name}"], m, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(state[f"exp_avg_sq.{name}"], v, rtol=1e-6, atol=1e-6)


def test_the_second_gradient_is_taken_rho_away_along_the_first():
    model, calls = network(), []
    loss_of(model).backward()
    direction = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    Updater(model, CONFIG, STEPS).update(0, gradient_of(model, calls))
    moved = torch.cat([(b - a).flatten() for a, b in zip(*calls, strict=True)])
    torch.testing.assert_close(moved, 0.2 * direction / direction.norm(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("rho", "times"), [(0.0, 1), (0.2, 2)])
def test_sam_costs_a_second_gradient_and_nothing_else_does(rho: float, times: int):
    model, calls = network(), []
    _, outcome = Updater(model, replace(CONFIG, rho=rho), STEPS).update(0, gradient_of(model, calls))
    assert len(calls) == outcome.gradients == times
    assert (outcome.sam_loss is None) == (times == 1)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
def test_exactly_the_old_weights_come_back_when_the_second_gradient_is_interrupted(exception: type[BaseException]):
    model = network()
    updater = Updater(model, CONFIG, STEPS)
    updater.update(0, gradient_of(model))
    before, calls = snapshot(updater), []

    def gradient() -> Report:
        report = gradient_of(model, calls)()
        if len(calls) == 2:
            raise exception
        return report

    with pytest.raises(exception):
        updater.update(1, gradient)
    assert len(calls) == 2
    assert any(not torch.equal(a, b) for a, b in zip(*calls, strict=True))
    assert_same(before, snapshot(updater))


@pytest.mark.parametrize("bad_call", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(bad_call: int, value: float):
    model = network()
    updater = Updater(model, CONFIG, STEPS)
    updater.update(0, gradient_of(model))
    before, calls = snapshot(updater), []

    def gradient() -> Report:
        report = gradient_of(model, calls)()
        if len(calls) == bad_call:
            next(p.grad for p in model.parameters() if p.grad is not None).view(-1)[0] = value
        return report

    _, outcome = updater.update(1, gradient)
    assert outcome.skipped
    assert len(calls) == bad_call
    assert_same(before, snapshot(updater))
    assert (updater.counters.skipped, updater.counters.skipped_in_a_row) == (1, 1)
    calls.clear()
    updater.update(1, gradient)
    assert (updater.counters.skipped, updater.counters.skipped_in_a_row) == (2, 2)
    updater.update(1, gradient_of(model))
    assert (updater.counters.skipped, updater.counters.skipped_in_a_row) == (2, 0)


def test_a_zero_gradient_is_a_step_of_decay_alone():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]

    def gradient() -> Report:
        (0.0 * loss_of(model)).backward()
        return Report({"loss": torch.zeros(())}, 0, 0)

    _, outcome = Updater(model, CONFIG, STEPS).update(0, gradient)
    assert not outcome.skipped
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p, old * (1 - 0.03 * 0.1), rtol=1e-12, atol=0)


def test_a_gradient_does_not_leak_into_the_next_step():
    model, calls = network(), []
    updater = Updater(model, CONFIG, STEPS)
    next(model.parameters()).grad = torch.full((5, 3), float("nan"), dtype=torch.float64)
    _, outcome = updater.update(0, gradient_of(model, calls))
    assert math.isfinite(outcome.gradient_norm)
    assert all(p.grad is None for p in model.parameters())


def test_the_norm_is_of_all_parameters_together():
    model = network()
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    assert float(gradient_norm(model)) == pytest.approx(2.0 * math.sqrt(sum(p.numel() for p in model.parameters())))


def test_an_updater_continues_exactly_from_its_saved_state():
    model = network()
    updater = Updater(model, CONFIG, STEPS)
    updater.update(0, gradient_of(model))
    copy = network()
    copy.load_state_dict(model.state_dict())
    continued = Updater(copy, CONFIG, STEPS)
    continued.load_state_tensors({k: v.clone() for k, v in updater.state_tensors().items()}, Path("saved"))
    updater.update(1, gradient_of(model))
    continued.update(1, gradient_of(copy))
    assert_same(snapshot(updater), snapshot(continued))


def test_a_saved_moment_of_another_shape_or_missing_is_named():
    model = network()
    updater = Updater(model, CONFIG, STEPS)
    updater.update(0, gradient_of(model))
    state = updater.state_tensors()
    wrong = state | {"exp_avg.3.weight": torch.zeros(2, 2)}
    with pytest.raises(InputError, match=r"saved.*exp_avg\.3\.weight.*\(2, 2\).*\(1, 5\)"):
        Updater(network(), CONFIG, STEPS).load_state_tensors(wrong, Path("saved"))
    del state["exp_avg_sq.3.weight"]
    with pytest.raises(InputError, match=r"saved.*exp_avg_sq\.3\.weight"):
        Updater(network(), CONFIG, STEPS).load_state_tensors(state, Path("saved"))
