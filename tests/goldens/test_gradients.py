"""Losses and the gradient of every parameter, of every variant, against the authors' code differentiated by JAX."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from cacophony.engine.config import MaeObjectiveConfig
from cacophony.engine.update_per_tensor import model_gradient_norm, perturbed
from cacophony.kernels.caption_loss import caption_loss
from cacophony.kernels.info_nce import info_nce
from cacophony.kernels.layout import LayoutName

from .objectives import contrastive_backward, mae_backward
from .sampling import Deviation
from .support import (
    LOSS_OPS,
    MAE_OPS,
    assert_within,
    audio_mae,
    audio_patches,
    audio_text,
    authors_gradient,
    captions,
    golden,
    run_on,
)

MAE, CACO = golden("audio_mae_gradients"), golden("audio_text_gradients")
RHO = 0.075


def assert_gradient(found: list[Deviation]) -> None:
    """Hold every parameter to 1e-5 of its largest entry.

    The true gradient of a key bias is zero, because it moves all scores of a query alike: what is there is rounding
    noise on both sides, which is held to 1e-6 of the largest entry of all.
    """
    largest = max(deviation.largest for deviation in found)
    for deviation in found:
        is_zero = deviation.name.endswith(("key/bias", "key_proj/bias"))
        assert (deviation.largest < 1e-6 * largest) == is_zero, deviation
        assert deviation.error < (1e-6 * largest if is_zero else 1e-5 * deviation.largest), deviation


@run_on(*MAE_OPS, "patch_mse")
@pytest.mark.parametrize("variance", ["unbiased", "biased"])
@pytest.mark.parametrize(("patches", "name"), [("masked", "masked"), ("all", "allvalid")])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_masked_reconstruction(
    device: torch.device, variance: str, patches: Literal["masked", "all"], name: str, layout: LayoutName
) -> None:
    model = audio_mae(device)
    objective = MaeObjectiveConfig(loss_patches=patches, unbiased_variance=variance == "unbiased")
    report = mae_backward(model, objective, layout, device)
    variant = f"{variance}_{name}"
    assert float(report.losses["loss"]) == pytest.approx(float(MAE[f"{variant}/loss"]), rel=2e-6)
    assert_gradient(MAE.deviations("parameters", authors_gradient(model), variant))


@run_on(*LOSS_OPS)
@pytest.mark.parametrize(("reduction", "name"), [("caption", "percaption"), ("token", "tokenmean")])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_contrastive_captioning(
    device: torch.device, reduction: Literal["caption", "token"], name: str, layout: LayoutName
) -> None:
    model = audio_text(device)
    losses = contrastive_backward(model, reduction, layout, device).losses
    assert float(losses["contrastive"]) == pytest.approx(float(CACO["loss/contrastive"]), rel=2e-6)
    assert float(losses["captioning"]) == pytest.approx(float(CACO[f"loss/caption_{name}"]), rel=2e-6)
    assert float(losses["loss"]) == pytest.approx(float(CACO[f"{name}/loss_total"]), rel=2e-6)
    assert float(model_gradient_norm(model)) == pytest.approx(float(CACO[f"{name}/grad_global_norm"]), rel=5e-6)
    assert_gradient(CACO.deviations("parameters", authors_gradient(model), f"{name}/grad"))


@run_on(*LOSS_OPS, interpreted=False)
def test_gradient_at_the_perturbed_weights(device: torch.device) -> None:
    model = audio_text(device)
    contrastive_backward(model, "caption", "packed", device)
    with perturbed(model, RHO, model_gradient_norm(model)):
        loss = contrastive_backward(model, "caption", "packed", device).losses["loss"]
    assert float(loss) == pytest.approx(float(CACO["percaption/loss_total_perturbed"]), rel=5e-6)
    norm = float(CACO["percaption/grad_global_norm_perturbed"])
    assert float(model_gradient_norm(model)) == pytest.approx(norm, rel=1e-5)
    assert_gradient(CACO.deviations("parameters", authors_gradient(model), "percaption/grad_perturbed"))


@run_on("info_nce")
def test_contrastive_loss_is_the_sum_of_both_directions(device: torch.device) -> None:
    """From the authors' embeddings; their logits are exp(logit_scale) times the cosines."""
    stored = golden("audio_text")
    audio, text = (stored.tensor(f"out/{side}_embedding_normalized", device) for side in ("audio", "text"))
    scale = audio_text(device).logit_scale.value.detach()
    logits = scale.exp() * audio @ text.T
    assert_within(logits, CACO["aux/contrastive_logits_audio_rows"], 2e-5)
    pairs = torch.arange(6, device=device)
    for rows, name in ((logits, "audio_to_text"), (logits.T, "text_to_audio")):
        assert float(F.cross_entropy(rows, pairs)) == pytest.approx(float(CACO[f"loss/contrastive_{name}"]), rel=2e-6)
    expected = float(CACO["loss/contrastive"])
    assert float(info_nce(audio, text, scale)) == pytest.approx(expected, rel=2e-6)
    assert float(info_nce(audio, text, scale, halved=True)) == pytest.approx(expected / 2, rel=2e-6)


@run_on(*LOSS_OPS)
def test_caption_loss_of_every_token(device: torch.device) -> None:
    """Logits predict the next token; EOS is a target, BOS and padding are none."""
    model = audio_text(device)
    patches, (token_ids, layout) = audio_patches("padded", device), captions("padded", device)
    with torch.no_grad():
        text_hidden = model.text_encoder(token_ids, layout)
        hidden = model.decode_caption(text_hidden, layout, model.audio_encoder(patches), patches.layout)
        head, one = model.caption_decoder.head, torch.ones(1, device=device)
        expected = torch.zeros(6, 13)
        found = torch.zeros(6, 13)
        for caption, slot in layout.valid[:, 1:].nonzero().tolist():
            token, target = hidden[caption, slot][None], token_ids[caption, slot + 1][None]
            found[caption, slot] = caption_loss(token, head.weight, head.bias, target, one)
            expected[caption, slot] = float(CACO["aux/token_nll"][caption, slot])
    assert int((expected > 0).sum()) == 43
    assert_within(found, expected.numpy(), 2e-5)
