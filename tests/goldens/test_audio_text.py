"""The audio-text model against the authors' code: hidden states, logits, embeddings, clips from wave to embedding."""

import pytest
import torch
from cacophony.kernels.layout import LayoutName, Packed, Padded, Patches, PatchPositions, pack, packed_layout
from cacophony.models.clip_patches import clip_patches, mono_wave

from .clips import TONAL, wave
from .support import (
    MODEL_OPS,
    assert_within,
    audio_patches,
    audio_text,
    captions,
    golden,
    laid_out,
    outputs_of,
    run_on,
)

STORED = golden("audio_text")
CLIPS: list[str] = STORED["e2e/clip_names"].tolist()
NO_PATCH = "tiny1600"


@run_on(*MODEL_OPS)
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_hidden_states_and_logits(device: torch.device, layout: LayoutName) -> None:
    """Padded, the slots of padding are held to the goldens too."""
    model = audio_text(device)
    patches, (token_ids, text_layout) = audio_patches(layout, device), captions(layout, device)
    audio_hidden = model.audio_encoder(patches)
    text_hidden = model.text_encoder(token_ids, text_layout)
    decoded = model.decode_caption(text_hidden, text_layout, audio_hidden, patches.layout)
    states = {
        "audio_hidden": audio_hidden,
        "text_hidden": text_hidden,
        "decoder_logits": model.caption_decoder.logits(decoded),
    }
    errors = {d.name: d.error for d in STORED.deviations("padded" if layout == "padded" else "valid", states)}
    assert errors["audio_hidden"] < 1e-5
    assert errors["text_hidden"] < 1e-5
    assert errors["decoder_logits"] < 2e-5


@run_on(*MODEL_OPS)
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_embeddings(device: torch.device, layout: LayoutName) -> None:
    model = audio_text(device)
    with outputs_of(model.audio_pooler.projection) as audio, outputs_of(model.text_pooler.projection) as text:
        _, audio_embedding = model.encode_audio(audio_patches(layout, device))
        _, text_embedding = model.encode_text(*captions(layout, device))
    assert_within(audio[0], STORED["out/audio_embedding"], 5e-6)
    assert_within(text[0], STORED["out/text_embedding"], 5e-6)
    assert_within(audio_embedding, STORED["out/audio_embedding_normalized"], 5e-6)
    assert_within(text_embedding, STORED["out/text_embedding_normalized"], 5e-6)
    assert float(model.logit_scale.value.detach().exp()) == pytest.approx(
        float(STORED["out/exp_logit_scale"]), rel=1e-6
    )


@run_on("log_mel_patches", "choose_patches", *MODEL_OPS, interpreted=False)
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_waveform_to_embedding(device: torch.device, layout: LayoutName) -> None:
    """Eight clips in one batch, the longest through the authors' subset of its patches.

    1e-3 where the authors' log-mel is the noise of TensorFlow's FFT. A clip without a patch has no such noise; packed
    it has no slot to pool either.
    """
    names = [name for name in CLIPS if layout == "padded" or name != NO_PATCH]
    model = audio_text(device)
    with torch.no_grad():
        _, embedding = model.encode_audio(golden_patches(names, layout, device))
    for row, name in enumerate(names):
        budget = 1e-3 if name in TONAL and name != NO_PATCH else 2e-5
        assert_within(embedding[row], STORED["e2e/audio_embedding_normalized"][CLIPS.index(name)], budget)


@run_on(*MODEL_OPS)
@pytest.mark.parametrize("name", ["short03", "silence"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_stored_patches_to_embedding(device: torch.device, name: str, layout: LayoutName) -> None:
    """The same patches give the same embedding, also where the waveform gives noisy ones."""
    values = golden("front_end").tensor(f"{name}/patches", device)
    number = torch.arange(len(values), device=device)
    positions = PatchPositions(number // 8, number % 8, Packed.from_lengths([len(values)], device))
    model = audio_text(device)
    with torch.no_grad(), outputs_of(model.audio_pooler.projection) as embedding:
        _, unit_embedding = model.encode_audio(laid_out(values, positions, layout))
    assert_within(embedding[0][0], STORED["e2e/audio_embedding"][CLIPS.index(name)], 1.5e-5)
    assert_within(unit_embedding[0], STORED["e2e/audio_embedding_normalized"][CLIPS.index(name)], 1.5e-5)


def golden_patches(names: list[str], layout: LayoutName, device: torch.device) -> Patches:
    """Patches of clips from their waves; of the longest those that the authors' random subset kept."""
    whole = clip_patches([mono_wave(wave(name)) for name in names], max_patches=528, device=device)
    kept = whole.layout.valid.clone()
    row = names.index("long10p6")
    kept[row] = False
    kept[row, golden("front_end").tensor("long10p6/keep_inds", device)] = True
    values, time, freq = (pack(x, Padded(kept)) for x in (whole.values, whole.positions.time, whole.positions.freq))
    return laid_out(values, PatchPositions(time, freq, packed_layout(Padded(kept))), layout)
