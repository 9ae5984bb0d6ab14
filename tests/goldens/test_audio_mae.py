"""The masked autoencoder: encoder and decoder against the authors' code, targets and losses as in the goldens."""

import numpy as np
import pytest
import torch
from cacophony.kernels.layout import LayoutName, Padded, Patches, PatchPositions
from cacophony.kernels.mae_decoder_input import interleave
from cacophony.kernels.patch_mse import patch_mse
from torch import Tensor

from .support import ENCODER_OPS, MAE_OPS, assert_within, audio_mae, golden, masked_patches, run_on, worst

STORED = golden("audio_mae")
BUDGET = 1e-5


@run_on(*MAE_OPS)
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_encoder_and_decoder(device: torch.device, layout: LayoutName) -> None:
    """Padded, the slots of padding are held to the goldens too: they are masked as keys only."""
    model = audio_mae(device)
    masked = masked_patches(layout, device)
    encoded = model.encoder(masked.kept)
    decoded, _ = model.decoder(encoded, masked.kept.positions, masked.restore.positions)
    group = "padded" if layout == "padded" else "valid"
    error, name = worst(STORED.deviations(group, {"encoder": encoded, "decoder": decoded}))
    assert error < BUDGET, name


@run_on(*ENCODER_OPS)
def test_fully_masked_input_is_finite(device: torch.device) -> None:
    """Attention is uniform over masked slots."""
    model = audio_mae(device)
    zero = torch.zeros(1, 16, dtype=torch.int64, device=device)
    positions = PatchPositions(zero, zero, Padded(zero.bool()))
    hidden = model.encoder(Patches(torch.zeros(1, 16, 256, device=device), positions))
    assert_within(hidden, np.tile(STORED["fully_masked_slot"], (1, 16, 1)), BUDGET)


@run_on("patch_mse")
@pytest.mark.parametrize("variance", ["unbiased", "biased"])
def test_normalised_targets(device: torch.device, variance: str) -> None:
    """Where nothing is predicted the loss's gradient is -2 / 256 of the target; packed, so that no slot is padding."""
    target = joined("packed", device)
    prediction = torch.zeros_like(target, requires_grad=True)
    selected = torch.ones(len(target), dtype=torch.bool, device=device)
    loss = patch_mse(prediction, target, selected, 1.0, unbiased=variance == "unbiased")
    (gradient,) = torch.autograd.grad(loss, prediction)
    found = {d.name: d for d in STORED.deviations("targets", dict.fromkeys(("biased", "unbiased"), gradient * -128))}
    assert found[variance].error < BUDGET


@run_on("patch_mse")
@pytest.mark.parametrize("variance", ["unbiased", "biased"])
@pytest.mark.parametrize("patches", ["masked", "allvalid"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_losses(device: torch.device, variance: str, patches: str, layout: LayoutName) -> None:
    model = audio_mae(device)
    masked = masked_patches(layout, device)
    prediction, decoded_layout = model(masked.kept, masked.restore.positions)
    visible = masked.kept.layout.valid if patches == "allvalid" else torch.zeros_like(masked.kept.layout.valid)
    selected = interleave(visible, masked.restore.layout.valid, masked.kept.layout, masked.restore.layout)
    assert int(selected.sum()) == (168 if patches == "allvalid" else 134)
    loss = patch_mse(prediction, joined(layout, device), selected, selected.sum(), unbiased=variance == "unbiased")
    expected = golden("audio_mae_gradients")[f"{variance}_{patches}/loss"]
    assert float(loss.detach()) == pytest.approx(float(expected), rel=2e-6)
    assert bool(selected[~decoded_layout.valid].any()) is False


def joined(layout: LayoutName, device: torch.device) -> Tensor:
    """True pixels in the decoder's order."""
    masked = masked_patches(layout, device)
    return interleave(masked.kept.values, masked.restore.values, masked.kept.layout, masked.restore.layout)
