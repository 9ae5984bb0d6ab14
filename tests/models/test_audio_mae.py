"""The masked autoencoder: layouts agree, padding and hidden patches are not seen, clips stay apart."""

from collections.abc import Sequence

import pytest
import torch
from cacophony.kernels.layout import LayoutName, Packed, Padded, Patches, PatchPositions, pack, pad
from cacophony.kernels.patch_mask import MaskedPatches, patch_mask
from cacophony.kernels.patch_mse import patch_mse
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.config import AudioMAEConfig, TransformerConfig
from cacophony.models.layers import init_weights
from torch import Tensor

OFFSETS = torch.tensor([0, 48, 70, 90])  # frames: 3, 1 and 1 time patches
KEEP = torch.tensor([9, 4, 1])


@pytest.fixture(scope="module")
def model() -> AudioMAE:
    encoder = TransformerConfig(width=16, layers=2, heads=2, mlp_width=24)
    decoder = TransformerConfig(width=12, layers=2, heads=3, mlp_width=20)
    mae = AudioMAE(AudioMAEConfig(encoder=encoder, decoder=decoder)).double()
    init_weights(mae, 0)
    return mae


def masked(frames: Tensor, layout: LayoutName, clips: Sequence[int] = (0, 1, 2)) -> MaskedPatches:
    rows = [frames[int(OFFSETS[i]) : int(OFFSETS[i + 1])] for i in clips]
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    index = torch.tensor(clips)
    return patch_mask(torch.cat(rows), offsets, KEEP[index], index, seed=0, step=0, layout=layout)


def test_padded_equals_packed_forward_and_backward(model: AudioMAE) -> None:
    frames = torch.randn(90, 128, dtype=torch.float64)
    losses, predictions = [], []
    for name in ("padded", "packed"):
        batch = masked(frames, name)
        prediction, layout = model(batch.kept, batch.restore.positions)
        visible, restore = batch.kept.layout, batch.restore.layout
        if isinstance(layout, Padded):
            target = torch.cat((batch.kept.values, batch.restore.values), dim=1)
            predictions.append(pack(prediction, layout))
        else:
            rows = zip(
                batch.kept.values.split(visible.lengths.tolist()),
                batch.restore.values.split(restore.lengths.tolist()),
                strict=True,
            )
            target = torch.cat([row for pair in rows for row in pair])
            predictions.append(prediction)
        losses.append(patch_mse(prediction, target, layout.valid, 40.0))
    torch.testing.assert_close(*predictions, rtol=0, atol=1e-10)
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    for name, a, b in zip(dict(model.named_parameters()), *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")
        assert bool(a.any()), name


def test_predictions_are_visible_first_then_restore(model: AudioMAE) -> None:
    """The last block's output for a slot follows the position that slot holds, not the order of the other slots."""
    batch = masked(torch.randn(90, 128, dtype=torch.float64), "packed", [0])
    prediction, layout = model(batch.kept, batch.restore.positions)
    assert layout.lengths.tolist() == [24]
    order = torch.randperm(15)
    positions = batch.restore.positions
    assert isinstance(positions.layout, Packed)
    shuffled = PatchPositions(positions.time[order], positions.freq[order], positions.layout)
    again, _ = model(batch.kept, shuffled)
    torch.testing.assert_close(again[:9], prediction[:9], rtol=0, atol=1e-10)
    torch.testing.assert_close(again[9:], prediction[9:][order], rtol=0, atol=1e-10)
    assert not torch.allclose(prediction[9:], prediction[9:][order])


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_clip_does_not_depend_on_its_batch(model: AudioMAE, layout: LayoutName) -> None:
    frames = torch.randn(90, 128, dtype=torch.float64)

    def predict(clips: list[int]) -> list[Tensor]:
        batch = masked(frames, layout, clips)
        prediction, where = model(batch.kept, batch.restore.positions)
        flat = pack(prediction, where) if isinstance(where, Padded) else prediction
        return list(flat.split(where.lengths.tolist()))

    together = predict([2, 0, 1])
    for clip, expected in zip([2, 0, 1], together, strict=True):
        torch.testing.assert_close(predict([clip])[0], expected, rtol=0, atol=1e-10)


def test_hidden_patches_do_not_leak(model: AudioMAE) -> None:
    frames = torch.randn(90, 128, dtype=torch.float64)
    batch = masked(frames, "padded")
    changed = frames.clone()
    for clip in range(3):
        positions, real = batch.restore.positions, batch.restore.layout.valid[clip]
        for time, freq in zip(positions.time[clip][real].tolist(), positions.freq[clip][real].tolist(), strict=True):
            first = int(OFFSETS[clip]) + 16 * time
            changed[first : first + 16, 16 * freq : 16 * freq + 16] = 1e3
    again = masked(changed, "padded")
    assert not torch.equal(again.restore.values, batch.restore.values)
    assert torch.equal(model.encoder(again.kept), model.encoder(batch.kept))
    one, other = (model(b.kept, b.restore.positions)[0] for b in (batch, again))
    assert torch.equal(one, other)


def test_padding_slots_do_not_matter(model: AudioMAE) -> None:
    batch = masked(torch.randn(90, 128, dtype=torch.float64), "packed")
    layout = batch.kept.layout
    assert isinstance(layout, Packed)
    expected = model.encoder(batch.kept)
    wide = Packed(layout.cu_seqlens, 17, layout.total)
    mask = torch.arange(17)[None] < layout.lengths[:, None]
    time, freq = pad(batch.kept.positions.time, wide), pad(batch.kept.positions.freq, wide)
    values = pad(batch.kept.values, wide).masked_fill(~mask[..., None], 7.0)
    hidden = model.encoder(Patches(values, PatchPositions(time, freq, Padded(mask))))
    torch.testing.assert_close(hidden[mask], expected, rtol=0, atol=1e-10)


def test_a_clip_without_patches_is_finite_forward_and_backward(model: AudioMAE) -> None:
    mask = torch.tensor([[True, True], [False, False]])
    zeros = torch.zeros(2, 2, dtype=torch.int64)
    values = torch.randn(2, 2, 256, dtype=torch.float64) * mask[..., None]
    patches = Patches(values, PatchPositions(zeros, zeros, Padded(mask)))
    prediction, layout = model(patches, patches.positions)
    assert prediction.shape == (2, 4, 256)
    assert layout.lengths.tolist() == [4, 0]
    assert bool(prediction.isfinite().all())
    for gradient in torch.autograd.grad(prediction.sum(), list(model.parameters())):
        assert bool(gradient.isfinite().all())


def test_training_mode_changes_nothing(model: AudioMAE) -> None:
    """The audio towers have no dropout."""
    batch = masked(torch.randn(90, 128, dtype=torch.float64), "packed")
    trained = model.train()(batch.kept, batch.restore.positions)[0]
    assert torch.equal(model.eval()(batch.kept, batch.restore.positions)[0], trained)
