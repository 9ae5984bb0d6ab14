"""Stage 1's gradient against one written without micro-batches, in a single graph."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from cacophony.data.batch import AudioTextBatch, collate
from cacophony.engine.config import MaeObjectiveConfig, MaeRunConfig
from cacophony.engine.distributed import World
from cacophony.engine.masked_reconstruction import MaskedReconstruction
from cacophony.engine.objective import Report
from cacophony.kernels import backend
from cacophony.kernels.choose_patches import keep_fraction
from cacophony.kernels.log_mel import log_mel
from cacophony.kernels.patch_mask import patch_mask
from cacophony.kernels.specs import SPECS
from cacophony.kernels.triton_runtime import INTERPRETING
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.layers import init_weights
from torch import Tensor

WORLD = World(0, 1, torch.device("cpu"))
STEP = 5
# Patches: 8 a 16 frames of 10 ms; the third clip, the shortest crop there is, has 8.
SAMPLES = (16_000, 9_000, 3_200, 20_000, 12_345)


@pytest.fixture(scope="module")
def batch() -> AudioTextBatch:
    rng = np.random.default_rng(0)
    return collate([rng.normal(0, 3000, n).astype(np.int16) for n in SAMPLES], [7, 3, 900, 0, 12], None)


@pytest.fixture(scope="module")
def model(mae_config: MaeRunConfig) -> AudioMAE:
    model = AudioMAE(mae_config.model)
    init_weights(model, 1)
    return model


def gradients(model: AudioMAE) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def literal(
    model: AudioMAE, batch: AudioTextBatch, objective: MaeObjectiveConfig, seed: int
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Loss, its gradients, and the visible and masked patches of each clip."""
    spectrogram = log_mel(batch.wave, batch.wave_offsets)
    keep = keep_fraction(spectrogram.patch_counts, 1 - objective.mask_ratio)
    masked = patch_mask(
        spectrogram.frames, spectrogram.frame_offsets, keep, batch.sample_index, seed=seed, step=STEP, layout="padded"
    )
    prediction, _ = model(masked.kept, masked.restore.positions)
    target = torch.cat([masked.kept.values, masked.restore.values], dim=1)
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True, correction=objective.unbiased_variance)
    error = (prediction - (target - mean) / (variance + 1e-6).sqrt()).square().mean(-1)
    visible = masked.kept.layout.valid
    if objective.loss_patches == "masked":
        visible = torch.zeros_like(visible)
    scored = torch.cat([visible, masked.restore.layout.valid], dim=1)
    loss = error[scored].mean()
    model.zero_grad()
    loss.backward()
    return loss.detach(), gradients(model), keep, spectrogram.patch_counts - keep


def run(model: AudioMAE, objective: MaskedReconstruction, inputs: Any) -> tuple[Report, dict[str, Tensor]]:
    model.zero_grad()
    report = objective.backward(model, inputs)
    return report, gradients(model)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 5, 64])
@pytest.mark.parametrize("loss_patches", ["masked", "all"])
def test_the_gradient_is_the_full_batchs_whatever_the_micro_batch_and_layout(
    model: AudioMAE,
    batch: AudioTextBatch,
    mae_config: MaeRunConfig,
    layout: Literal["packed", "padded"],
    micro_batch_size: int,
    loss_patches: Literal["masked", "all"],
):
    settings = MaeObjectiveConfig(loss_patches=loss_patches, unbiased_variance=layout == "packed", mask_ratio=0.7)
    config = replace(mae_config, layout=layout, micro_batch_size=micro_batch_size, seed=9)
    loss, expected, visible, restored = literal(model, batch, settings, seed=9)
    objective = MaskedReconstruction(settings, config, WORLD)
    report, found = run(model, objective, objective.prepare(batch, STEP))

    assert float(report.losses["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()), msg=name)
    # The encoder sees the visible patches, the decoder all of them.
    assert report.valid_tokens == int((2 * visible + restored).sum())
    assert report.model_flops == 3 * model.flops(visible, restored)


@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_the_share_of_hidden_patches_is_the_mask_ratio(batch: AudioTextBatch, mae_config: MaeRunConfig, ratio: float):
    objective = MaskedReconstruction(MaeObjectiveConfig(mask_ratio=ratio), mae_config, WORLD)
    for micro in objective.prepare(batch, STEP):
        hidden, visible = micro.restore_lengths, micro.visible_lengths
        assert torch.equal(hidden, micro.patches.restore.layout.lengths)
        assert torch.equal(visible, micro.patches.kept.layout.lengths)
        total = hidden + visible
        assert bool(((hidden - ratio * total).abs() <= 1).all())
        assert bool((visible[total > 0] >= 1).all())


def test_a_second_gradient_of_the_same_step_is_the_same_bit_for_bit(
    model: AudioMAE, batch: AudioTextBatch, mae_config: MaeRunConfig
):
    objective = MaskedReconstruction(MaeObjectiveConfig(), mae_config, WORLD)
    inputs = objective.prepare(batch, STEP)
    (first, once), (second, twice) = run(model, objective, inputs), run(model, objective, inputs)
    assert torch.equal(first.losses["loss"], second.losses["loss"])
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_the_mask_changes_from_step_to_step_and_with_the_seed(batch: AudioTextBatch, mae_config: MaeRunConfig):
    def times(seed: int, step: int) -> list[int]:
        objective = MaskedReconstruction(MaeObjectiveConfig(), replace(mae_config, seed=seed), WORLD)
        return [t for micro in objective.prepare(batch, step) for t in micro.patches.kept.positions.time.tolist()]

    assert times(0, 1) == times(0, 1)
    assert times(0, 1) != times(0, 2)
    assert times(0, 1) != times(1, 1)


def test_the_gradient_is_added_to_what_is_there(model: AudioMAE, batch: AudioTextBatch, mae_config: MaeRunConfig):
    objective = MaskedReconstruction(MaeObjectiveConfig(), mae_config, WORLD)
    inputs = objective.prepare(batch, STEP)
    _, once = run(model, objective, inputs)
    objective.backward(model, inputs)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 2 * once[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("make", [lambda config: replace(config, precision="bf16")])
def test_bf16_gives_a_gradient_in_the_same_direction(
    model: AudioMAE, batch: AudioTextBatch, mae_config: MaeRunConfig, make: Callable[[MaeRunConfig], MaeRunConfig]
):
    """Budget: bf16 keeps 8 bits, so the cosine of the whole gradient stays within 1e-3 of 1."""
    both = []
    for config in (mae_config, make(mae_config)):
        objective = MaskedReconstruction(MaeObjectiveConfig(), config, WORLD)
        report, found = run(model, objective, objective.prepare(batch, STEP))
        assert report.losses["loss"].dtype == torch.float32
        assert all(g.dtype == torch.float32 for g in found.values())
        both.append(torch.cat([g.flatten() for g in found.values()]))
    assert float(torch.cosine_similarity(both[0], both[1], dim=0)) > 0.999


@pytest.mark.skipif(not INTERPRETING, reason="the kernels run on this CPU batch in Triton's interpreter alone")
@pytest.mark.parametrize(
    ("layout", "loss_patches", "precision"),
    [("packed", "masked", "fp32"), ("padded", "all", "fp32"), ("packed", "masked", "bf16")],
)
def test_kernels_give_the_references_loss_and_gradient(
    model: AudioMAE,
    batch: AudioTextBatch,
    mae_config: MaeRunConfig,
    monkeypatch: pytest.MonkeyPatch,
    layout: Literal["packed", "padded"],
    loss_patches: Literal["masked", "all"],
    precision: Literal["fp32", "bf16"],
):
    """Every op that has kernels runs on them, forward and backward; budgets: float32's rounding, bf16's 8 bits.

    In bf16 but those that multiply matrices, which the interpreter gets wrong.
    """
    left_out = {spec.name for spec in SPECS if spec.tensor_cores and precision == "bf16"}
    config = replace(mae_config, layout=layout, micro_batch_size=3, precision=precision)
    objective = MaskedReconstruction(MaeObjectiveConfig(loss_patches=loss_patches), config, WORLD)
    inputs = objective.prepare(batch, STEP)
    expected_report, expected = run(model, objective, inputs)

    choose, on_kernels = backend.choose, set[str]()

    def choose_fused(name: str, device: torch.device) -> backend.Choice:
        with backend.use_backend("fused"):
            choice = choose(name, device)
        if choice.path == "fused" and name not in left_out:
            on_kernels.add(name)
            return choice
        return choose(name, device)

    monkeypatch.setattr(backend, "choose", choose_fused)
    report, found = run(model, objective, inputs)
    assert on_kernels >= {"layer_norm", "mae_decoder_input", "patch_mse"}
    budget = 1e-5 if precision == "fp32" else 2e-2
    assert float(report.losses["loss"]) == pytest.approx(float(expected_report.losses["loss"]), rel=budget)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=budget * float(gradient.abs().max()), msg=name)
