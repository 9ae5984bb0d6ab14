"""Parameters after SAM + AdamW and after AdamW alone against the authors' optimiser, optax, on JAX's gradients."""

from typing import Literal

import numpy as np
import pytest
import torch
from cacophony.engine.objective import Report
from cacophony.engine.update import Outcome, Updater
from cacophony.engine.update_config import UpdateConfig
from cacophony.engine.update_per_tensor import PerTensorUpdater, model_gradient_norm
from cacophony.kernels.layout import LayoutName

from .objectives import contrastive_backward
from .support import CPU, LOSS_OPS, UPDATE_OPS, audio_text, authors_gradient, authors_parameters, golden, run_on

CACO = golden("audio_text_gradients")
GROUP = "parameters"


class Training:
    """Steps on the goldens' batch; keeps all gradients' norms and, in the authors' names, AdamW's first gradient."""

    def __init__(
        self,
        rho: float,
        reduction: Literal["caption", "token"],
        layout: LayoutName,
        device: torch.device,
        make: type[Updater] | type[PerTensorUpdater] = Updater,
    ) -> None:
        self.model = audio_text(device)
        self.setting = (reduction, layout, device)
        constant = UpdateConfig(learning_rate=1e-3, final_learning_rate=1e-3, warmup_steps=0, rho=rho)
        self.updater = make(self.model, constant, steps=10)
        self.norms: list[float] = []
        self.first_gradient: dict[str, np.ndarray] = {}

    def step(self, number: int) -> tuple[Report, Outcome]:
        def gradient() -> Report:
            report = contrastive_backward(self.model, *self.setting)
            self.norms.append(float(model_gradient_norm(self.model)))
            if number == 0:  # SAM's second gradient replaces its first
                self.first_gradient = authors_gradient(self.model)
            return report

        return self.updater.update(number, gradient)

    def assert_parameters(self, variant: str, budget: float) -> None:
        """Hold the sampled parameters whose first gradient is more than 1e-5.

        Where it is smaller, Adam turns rounding noise into a step of up to the learning rate. Where it is exactly zero
        (rows of tables that no token reads) only the decay is left, which must be there.
        """
        places = CACO.places(GROUP)
        found, gradient = places.take(authors_parameters(self.model)), places.take(self.first_gradient)
        compared = 0
        for name, expected in CACO.values(GROUP, variant).items():
            is_safe = np.abs(gradient[name]) > 1e-5
            if name.endswith("_embeddings/embedding"):
                is_safe |= gradient[name] == 0.0
            compared += is_safe.sum()
            error = np.abs(found[name] - expected)[is_safe].max(initial=0.0)
            assert error < budget, f"{name}: {error}"
        assert compared > 0.9 * sum(len(index) for index in places.indices)


@run_on(*LOSS_OPS, *UPDATE_OPS)
def test_two_steps_of_sam_and_adamw(device: torch.device) -> None:
    training = Training(0.075, "caption", "padded", device)
    report, outcome = training.step(0)
    assert outcome.sam_loss is not None
    assert float(report.losses["loss"]) == pytest.approx(float(CACO["percaption/loss_total"]), rel=2e-6)
    assert float(outcome.sam_loss) == pytest.approx(float(CACO["percaption/loss_total_perturbed"]), rel=5e-6)
    assert training.norms[0] == pytest.approx(float(CACO["percaption/grad_global_norm"]), rel=5e-6)
    assert training.norms[1] == pytest.approx(float(CACO["percaption/grad_global_norm_perturbed"]), rel=1e-5)
    training.assert_parameters("percaption/params_after_sam_adamw_step1", 1e-6)

    report, outcome = training.step(1)
    assert outcome.sam_loss is not None
    assert float(report.losses["loss"]) == pytest.approx(float(CACO["percaption/loss_total_after_step1"]), rel=2e-5)
    assert float(outcome.sam_loss) == pytest.approx(float(CACO["percaption/loss_total_perturbed_step2"]), rel=2e-5)
    training.assert_parameters("percaption/params_after_sam_adamw_step2", 1e-5)


@run_on(*LOSS_OPS, *UPDATE_OPS, interpreted=False)
def test_sam_and_adamw_on_the_token_mean(device: torch.device) -> None:
    training = Training(0.075, "token", "packed", device)
    _, outcome = training.step(0)
    assert outcome.sam_loss is not None
    assert float(outcome.sam_loss) == pytest.approx(float(CACO["tokenmean/loss_total_perturbed"]), rel=5e-6)
    assert training.norms[0] == pytest.approx(float(CACO["tokenmean/grad_global_norm"]), rel=5e-6)
    assert training.norms[1] == pytest.approx(float(CACO["tokenmean/grad_global_norm_perturbed"]), rel=1e-5)
    training.assert_parameters("tokenmean/params_after_sam_adamw_step1", 1e-6)

    report, outcome = training.step(1)
    assert outcome.sam_loss is not None
    assert float(report.losses["loss"]) == pytest.approx(float(CACO["tokenmean/loss_total_after_step1"]), rel=2e-5)
    assert float(outcome.sam_loss) == pytest.approx(float(CACO["tokenmean/loss_total_perturbed_step2"]), rel=2e-5)


@run_on(*LOSS_OPS, *UPDATE_OPS, interpreted=False)
def test_adamw_without_sam(device: torch.device) -> None:
    training = Training(0.0, "caption", "packed", device)
    _, outcome = training.step(0)
    assert outcome.sam_loss is None
    training.assert_parameters("percaption/params_after_plain_adamw_step1", 1e-6)


def test_one_step_tensor_by_tensor() -> None:
    training = Training(0.075, "caption", "packed", CPU, PerTensorUpdater)
    training.step(0)
    training.assert_parameters("percaption/params_after_sam_adamw_step1", 1e-6)
