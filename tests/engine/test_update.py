"""AdamW with sharpness-aware minimisation, on flat buffers and tensor by tensor, against a literal oracle."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cacophony.engine.build import AnyUpdater
from cacophony.engine.objective import Report
from cacophony.engine.schedule import learning_rate
from cacophony.engine.update import Counters, Updater
from cacophony.engine.update_config import UpdateConfig
from cacophony.engine.update_per_tensor import PerTensorUpdater, model_gradient_norm
from cacophony.errors import InputError
from cacophony.kernels.backend import Backend, use_backend
from cacophony.kernels.triton_runtime import HAS_TRITON
from torch import Tensor, nn

CONFIG = UpdateConfig(
    learning_rate=0.03, final_learning_rate=0.01, warmup_steps=1, weight_decay=0.1, beta1=0.8, beta2=0.95, rho=0.2
)
STEPS = 5
Gradient = Callable[[], Report]
Make = type[Updater] | type[PerTensorUpdater]

both = pytest.mark.parametrize("make", [Updater, PerTensorUpdater])


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 1)).double()


def loss_of(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(11, 3, dtype=torch.float64, generator=generator).to(next(model.parameters()).dtype)
    return (model(x)[:, 0] - x.prod(dim=1)).square().mean()


def gradient_of(model: nn.Module, calls: list[list[Tensor]] | None = None) -> Gradient:
    """The gradient of `loss_of`; notes the weights of each call in `calls`."""

    def gradient() -> Report:
        if calls is not None:
            calls.append([p.detach().clone() for p in model.parameters()])
        loss = loss_of(model)
        loss.backward()
        return Report({"loss": loss.detach()}, 0, 0, 0)

    return gradient


def snapshot(updater: AnyUpdater) -> dict[str, Tensor]:
    # What the network computes with is part of it.
    copy = {f"copy of {name}": tensor for name, tensor in updater.model.state_dict().items()}
    tensors = copy | updater.weights() | updater.state_tensors()
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(before: dict[str, Tensor], after: dict[str, Tensor]):
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@both
@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_updates_equal_sam_and_adamw_written_out(rho: float, make: Make):
    """Budget 1e-6: the oracle is float64, the updater's norm float32."""
    config = replace(CONFIG, rho=rho)
    model, twin = network(), network()
    updater = make(model, config, STEPS)
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
        assert float(outcome.gradient_norm) == pytest.approx(norm, rel=1e-6)
        assert outcome.learning_rate == rate
        if outcome.sam_loss is not None:
            assert float(outcome.sam_loss) == pytest.approx(float(sharp_loss.detach()), rel=1e-6)
        for p, q in zip(model.parameters(), weights, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    state = updater.state_tensors()
    for (name, _), m, v in zip(model.named_parameters(), first, second, strict=True):
        torch.testing.assert_close(state[f"exp_avg.{name}"], m, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(state[f"exp_avg_sq.{name}"], v, rtol=1e-6, atol=1e-6)


@both
def test_the_second_gradient_is_taken_rho_away_along_the_first(make: Make):
    model, calls = network(), []
    loss_of(model).backward()
    direction = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    make(model, CONFIG, STEPS).update(0, gradient_of(model, calls))
    moved = torch.cat([(b - a).flatten() for a, b in zip(*calls, strict=True)])
    torch.testing.assert_close(moved, 0.2 * direction / direction.norm(), rtol=1e-6, atol=1e-9)


@both
@pytest.mark.parametrize(("rho", "times"), [(0.0, 1), (0.2, 2)])
def test_sam_costs_a_second_gradient_and_nothing_else_does(rho: float, times: int, make: Make):
    model, calls = network(), []
    _, outcome = make(model, replace(CONFIG, rho=rho), STEPS).update(0, gradient_of(model, calls))
    assert len(calls) == len(outcome.reports) == times
    assert (outcome.sam_loss is None) == (times == 1)


@both
@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
def test_exactly_the_old_weights_come_back_when_the_second_gradient_is_interrupted(
    exception: type[BaseException], make: Make
):
    model = network()
    updater = make(model, CONFIG, STEPS)
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


@both
@pytest.mark.parametrize("bad_call", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(bad_call: int, value: float, make: Make):
    model = network()
    updater = make(model, CONFIG, STEPS)
    updater.update(0, gradient_of(model))
    before, calls = snapshot(updater), []

    def gradient() -> Report:
        report = gradient_of(model, calls)()
        if len(calls) == bad_call:
            next(p.grad for p in model.parameters() if p.grad is not None).view(-1)[0] = value
        return report

    _, outcome = updater.update(1, gradient)
    assert outcome.skipped
    assert len(calls) == (2 if make is Updater else bad_call)  # the device alone knows that a second is in vain
    assert_same(before, snapshot(updater))
    assert updater.counters == Counters(1, 1)
    calls.clear()
    updater.update(1, gradient)
    assert updater.counters == Counters(2, 2)
    _, outcome = updater.update(1, gradient_of(model))
    assert not outcome.skipped
    assert updater.counters == Counters(2, 0)
    assert float(updater.state_tensors()["step.0.weight"]) == 2


@both
def test_a_zero_gradient_is_a_step_of_decay_alone(make: Make):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]

    def gradient() -> Report:
        (0.0 * loss_of(model)).backward()
        return Report({"loss": torch.zeros(())}, 0, 0, 0)

    _, outcome = make(model, CONFIG, STEPS).update(0, gradient)
    assert not outcome.skipped
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p, old * (1 - 0.03 * 0.1), rtol=1e-12, atol=0)


@both
def test_a_gradient_does_not_leak_into_the_next_step(make: Make):
    model, calls = network(), []
    updater = make(model, CONFIG, STEPS)
    next(model.parameters()).grad = torch.full((5, 3), float("nan"), dtype=torch.float64)
    _, outcome = updater.update(0, gradient_of(model, calls))
    assert math.isfinite(float(outcome.gradient_norm))
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_norm_is_of_all_parameters_together():
    model = network()
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    assert float(model_gradient_norm(model)) == pytest.approx(
        2.0 * math.sqrt(sum(p.numel() for p in model.parameters()))
    )


@both
def test_an_updater_continues_exactly_from_its_saved_state(make: Make):
    model = network()
    updater = make(model, CONFIG, STEPS)
    updater.update(0, gradient_of(model))
    copy = network()
    continued = make(copy, CONFIG, STEPS)
    continued.load_weights({k: v.clone() for k, v in updater.weights().items()}, Path("saved"))
    continued.load_state_tensors({k: v.clone() for k, v in updater.state_tensors().items()}, Path("saved"))
    updater.update(1, gradient_of(model))
    continued.update(1, gradient_of(copy))
    assert_same(snapshot(updater), snapshot(continued))


@both
def test_a_saved_moment_of_another_shape_or_missing_is_named(make: Make):
    model = network()
    updater = make(model, CONFIG, STEPS)
    updater.update(0, gradient_of(model))
    state = updater.state_tensors()
    wrong = state | {"exp_avg.3.weight": torch.zeros(2, 2)}
    with pytest.raises(InputError, match=r"saved.*exp_avg\.3\.weight.*\(2, 2\).*\(1, 5\)"):
        make(network(), CONFIG, STEPS).load_state_tensors(wrong, Path("saved"))
    del state["exp_avg_sq.3.weight"]
    with pytest.raises(InputError, match=r"saved.*exp_avg_sq\.3\.weight"):
        make(network(), CONFIG, STEPS).load_state_tensors(state, Path("saved"))


@pytest.mark.parametrize("backend", ["reference", *(["fused"] if HAS_TRITON else [])])
@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_flat_buffers_and_tensor_by_tensor_train_alike(rho: float, backend: Backend):
    """Budget 2e-7 after five steps of up to 0.03: a few float32 units of weights around 0.5."""
    config = replace(CONFIG, rho=rho)
    flat, single = (network().float() for _ in range(2))
    updaters = Updater(flat, config, STEPS), PerTensorUpdater(single, config, STEPS)
    for step in range(STEPS):
        with use_backend(backend, ops=["gradient_norm", "sam_perturb", "adamw"]):
            (report, outcome), (expected_report, expected) = (u.update(step, gradient_of(u.model)) for u in updaters)
        assert float(report.losses["loss"]) == pytest.approx(float(expected_report.losses["loss"]), rel=1e-6)
        assert float(outcome.gradient_norm) == pytest.approx(float(expected.gradient_norm), rel=1e-6)
        assert outcome.learning_rate == expected.learning_rate
    found, expected = snapshot(updaters[0]), snapshot(updaters[1])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=2e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("first", "second"), [(Updater, PerTensorUpdater), (PerTensorUpdater, Updater)])
def test_a_run_may_be_continued_by_the_other_implementation(first: Make, second: Make):
    begun, alone = first(network(), CONFIG, STEPS), second(network(), CONFIG, STEPS)
    for updater in (begun, alone):
        for step in range(3):
            updater.update(step, gradient_of(updater.model))
    continued = second(network(), CONFIG, STEPS)
    continued.load_weights({k: v.clone() for k, v in begun.weights().items()}, Path("saved"))
    continued.load_state_tensors({k: v.clone() for k, v in begun.state_tensors().items()}, Path("saved"))
    for updater in (continued, alone):
        updater.update(3, gradient_of(updater.model))
    found, expected = snapshot(continued), snapshot(alone)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)


def test_moments_of_different_steps_are_refused():
    updater = Updater(network(), CONFIG, STEPS)
    state = updater.state_tensors() | {"step.3.bias": torch.tensor(4.0)}
    with pytest.raises(InputError, match=r"saved: step\..* expected one count for all"):
        updater.load_state_tensors(state, Path("saved"))


def test_a_gradient_that_drops_the_views_is_refused_and_undone():
    model = network()
    updater = Updater(model, CONFIG, STEPS)
    before = snapshot(updater)

    def gradient() -> Report:
        model.zero_grad(set_to_none=True)
        return gradient_of(model)()

    with pytest.raises(RuntimeError, match=r"0\.weight\.grad was replaced"):
        updater.update(0, gradient)
    assert_same(before, snapshot(updater))


def test_between_steps_gradients_may_be_dropped():
    one, other = Updater(network(), CONFIG, STEPS), Updater(network(), CONFIG, STEPS)
    for step in range(2):
        other.model.zero_grad(set_to_none=True)
        for updater in (one, other):
            updater.update(step, gradient_of(updater.model))
    assert_same(snapshot(one), snapshot(other))


def test_a_parameter_without_a_gradient_takes_part_with_a_zero_one():
    """torch.optim.AdamW would leave it alone. Here as there a parameter of no use loses its decay alone."""
    model = network()
    model.register_parameter("unused", nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64)))
    updater = Updater(model, CONFIG, STEPS)
    updater.update(0, gradient_of(model))
    torch.testing.assert_close(
        updater.weights()["unused"], torch.full((3,), 2.0 * (1 - 0.03 * 0.1), dtype=torch.float64), rtol=1e-12, atol=0
    )
    assert not updater.state_tensors()["exp_avg.unused"].any()
