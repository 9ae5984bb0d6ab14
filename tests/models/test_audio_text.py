"""The audio-text model: layouts agree end to end, embeddings are unit vectors, empty clips are finite."""

import math

import pytest
import torch
from cacophony.kernels.caption_loss import caption_loss
from cacophony.kernels.dropout import DropoutKey
from cacophony.kernels.info_nce import info_nce
from cacophony.kernels.layout import Layout, Packed, Padded, Patches, PatchPositions, pad, padded_layout
from cacophony.models.audio_text import AudioText
from cacophony.models.config import AudioTextConfig, TextConfig, TransformerConfig
from cacophony.models.layers import init_weights
from torch import Tensor

AUDIO = TransformerConfig(width=16, layers=2, heads=2, mlp_width=24)
TEXT = TextConfig(width=12, layers=2, heads=3, mlp_width=20, vocab_size=30, max_positions=10)
CLIPS, CAPTIONS = Packed.from_lengths([5, 1, 8]), Packed.from_lengths([4, 7, 2])


@pytest.fixture
def model() -> AudioText:
    config = AudioTextConfig(audio=AUDIO, text=TEXT, caption_layers=2, pool_heads=4, projection_width=6)
    model = AudioText(config)
    init_weights(model, 0)
    return model.double()


def packed_patches() -> Patches:
    number = CLIPS.positions * 3
    values = torch.randn(CLIPS.total, 256, dtype=torch.float64)
    return Patches(values, PatchPositions(number // 8, number % 8, CLIPS))


def padded_patches(patches: Patches) -> Patches:
    time, freq = pad(patches.positions.time, CLIPS), pad(patches.positions.freq, CLIPS)
    return Patches(pad(patches.values, CLIPS), PatchPositions(time, freq, padded_layout(CLIPS)))


def objective(model: AudioText, patches: Patches, ids: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings and the contrastive + captioning loss, written for one layout as for the other."""
    key = DropoutKey(0.2, 0, 3, torch.arange(layout.batch_size))
    audio_hidden, audio = model.encode_audio(patches)
    text_hidden, text = model.encode_text(ids, layout, key)
    hidden = model.decode_caption(text_hidden, layout, audio_hidden, patches.layout, key)
    last = layout.positions == layout.spread(layout.lengths) - 1
    token_weights = (layout.valid & ~last).double() / 10
    head = model.caption_decoder.head
    loss = caption_loss(hidden, head.weight, head.bias, ids.roll(-1, -1), token_weights)
    return audio, text, loss + info_nce(audio, text, model.logit_scale.value)


def test_padded_equals_packed_forward_and_backward(model: AudioText) -> None:
    patches, ids = packed_patches(), torch.randint(0, 30, (CAPTIONS.total,))
    one = objective(model, patches, ids, CAPTIONS)
    other = objective(model, padded_patches(patches), pad(ids, CAPTIONS), padded_layout(CAPTIONS))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (one[2], other[2])]
    for name, a, b in zip(dict(model.named_parameters()), *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")
        assert bool(a.any()), name


def test_embeddings_have_unit_norm_and_the_projections_width(model: AudioText) -> None:
    _, audio = model.encode_audio(packed_patches())
    _, text = model.encode_text(torch.randint(0, 30, (CAPTIONS.total,)), CAPTIONS)
    for embedding in (audio, text):
        assert embedding.shape == (3, 6)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-7)


def test_an_embedding_does_not_depend_on_its_batch(model: AudioText) -> None:
    patches, ids = packed_patches(), torch.randint(0, 30, (CAPTIONS.total,))
    _, audio = model.encode_audio(patches)
    _, text = model.encode_text(ids, CAPTIONS)
    for b in range(3):
        rows, tokens = CLIPS.sequence_ids == b, CAPTIONS.sequence_ids == b
        alone = Packed.from_lengths([int(rows.sum())])
        positions = PatchPositions(patches.positions.time[rows], patches.positions.freq[rows], alone)
        torch.testing.assert_close(model.encode_audio(Patches(patches.values[rows], positions))[1][0], audio[b])
        caption = Packed.from_lengths([int(tokens.sum())])
        torch.testing.assert_close(model.encode_text(ids[tokens], caption)[1][0], text[b])


def test_order_of_patches_does_not_matter_but_their_positions_do(model: AudioText) -> None:
    patches = packed_patches()
    order = torch.cat((torch.randperm(5), torch.tensor([5]), 6 + torch.randperm(8)))
    positions = PatchPositions(patches.positions.time[order], patches.positions.freq[order], CLIPS)
    _, audio = model.encode_audio(patches)
    torch.testing.assert_close(model.encode_audio(Patches(patches.values[order], positions))[1], audio)
    for time, freq in ((1, 0), (0, 1)):
        moved = PatchPositions(patches.positions.time + time, (patches.positions.freq + freq) % 8, CLIPS)
        assert not torch.allclose(model.encode_audio(Patches(patches.values, moved))[1], audio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_clip_without_patches_is_finite_forward_and_backward(model: AudioText, dtype: torch.dtype) -> None:
    model.to(dtype)
    mask = torch.tensor([[False, False], [True, True]])
    values = torch.randn(2, 2, 256, dtype=dtype) * mask[..., None]
    slots = torch.zeros(2, 2, dtype=torch.int64)
    patches = Patches(values, PatchPositions(slots, slots, Padded(mask)))
    captions = Padded(torch.ones(2, 3, dtype=torch.bool))
    audio, _, loss = objective(model, patches, torch.randint(0, 30, (2, 3)), captions)
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(2, dtype=dtype))
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        assert bool(gradient.isfinite().all())


def test_without_a_key_nothing_drops_out_in_either_mode(model: AudioText) -> None:
    patches, ids = packed_patches(), torch.randint(0, 30, (CAPTIONS.total,))

    def everything() -> list[Tensor]:
        hidden, audio = model.encode_audio(patches)
        text_hidden, text = model.encode_text(ids, CAPTIONS)
        return [audio, text, model.decode_caption(text_hidden, CAPTIONS, hidden, CLIPS)]

    trained = [x.detach() for x in (model.train(), everything())[1]]
    model.eval()
    assert all(torch.equal(a, b) for a, b in zip(everything(), trained, strict=True))


def test_text_and_captioning_drop_out_independently(model: AudioText) -> None:
    patches, ids = packed_patches(), torch.randint(0, 30, (CAPTIONS.total,))
    audio_hidden, _ = model.encode_audio(patches)
    plain, _ = model.encode_text(ids, CAPTIONS)
    key = DropoutKey(0.3, 0, 0, torch.arange(3))
    assert not torch.allclose(model.encode_text(ids, CAPTIONS, key)[0], plain)
    captioned = model.decode_caption(plain, CAPTIONS, audio_hidden, CLIPS)
    assert not torch.allclose(model.decode_caption(plain, CAPTIONS, audio_hidden, CLIPS, key), captioned)


def test_no_two_places_share_a_dropout_mask(model: AudioText, monkeypatch: pytest.MonkeyPatch) -> None:
    sites: list[int] = []
    site_key = DropoutKey.site_key

    def spy(key: DropoutKey, device: torch.device) -> Tensor:
        sites.append(key.site)
        return site_key(key, device)

    monkeypatch.setattr(DropoutKey, "site_key", spy)
    objective(model, packed_patches(), torch.randint(0, 30, (CAPTIONS.total,)), CAPTIONS)
    # embeddings; 2 text blocks with attention weights and two outputs; 2 caption blocks with cross-attention as well
    assert len(sites) == 1 + 2 * 3 + 2 * 5
    assert len({*sites}) == len(sites)


def test_the_initial_temperature_is_the_configured_one() -> None:
    config = AudioTextConfig(audio=AUDIO, text=TEXT, pool_heads=2, initial_logit_scale=math.log(50))
    model = AudioText(config)
    init_weights(model, 0)
    assert float(model.logit_scale.value.detach().exp()) == pytest.approx(50)
