"""Stage 2's gradient against one written without micro-batches, in a single graph, in float64."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from cacophony.data.batch import AudioTextBatch, collate
from cacophony.engine.build import build_model
from cacophony.engine.config import Blocks, ContrastiveObjectiveConfig, ContrastiveRunConfig
from cacophony.engine.contrastive_captioning import ContrastiveCaptioning
from cacophony.engine.distributed import World
from cacophony.engine.objective import Report
from cacophony.errors import InputError
from cacophony.kernels.choose_patches import keep_at_most
from cacophony.kernels.dropout import DropoutKey
from cacophony.kernels.layout import Packed, pad, padded_layout
from cacophony.kernels.log_mel import log_mel
from cacophony.kernels.patch_mask import patch_mask
from cacophony.models.audio_text import AudioText
from cacophony.models.by_hand import Stash
from cacophony.models.layers import init_weights
from cacophony.models.tensor_shapes import load_into
from torch import Tensor

WORLD = World(0, 1, torch.device("cpu"))
STEP, SEED = 5, 9
# The third clip is the shortest crop there is; the second caption has no word.
SAMPLES, TOKENS = (16_000, 9_000, 3_200, 20_000, 12_345), (6, 2, 9, 3, 20)


@pytest.fixture(scope="module")
def batch() -> AudioTextBatch:
    rng = np.random.default_rng(0)
    waves = [rng.normal(0, 3000, n).astype(np.int16) for n in SAMPLES]
    tokens = [np.array([0, *rng.integers(4, 300, n - 2), 2], np.int32) for n in TOKENS]
    return collate(waves, [7, 3, 900, 0, 12], tokens)


@pytest.fixture(scope="module")
def model(contrastive_config: ContrastiveRunConfig) -> AudioText:
    model = AudioText(contrastive_config.model)
    init_weights(model, 1)
    with torch.no_grad():  # away from the start, where embeddings of all clips are nearly equal
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return model


def gradients(model: AudioText) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def literal(
    model: AudioText, batch: AudioTextBatch, config: ContrastiveObjectiveConfig, dropout: float
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Losses, the gradients of their weighted sum, and the patches of each clip; float64 from the patches on."""
    model = copy.deepcopy(model).double()
    spectrogram = log_mel(batch.wave, batch.wave_offsets)
    keep = keep_at_most(spectrogram.patch_counts, config.max_patches)
    patches = patch_mask(
        spectrogram.frames, spectrogram.frame_offsets, keep, batch.sample_index, seed=SEED, step=STEP, layout="padded"
    ).kept
    patches = replace(patches, values=patches.values.double())
    packed = Packed.from_lengths(batch.token_lengths)
    layout = padded_layout(packed)
    token_ids = pad(batch.token_ids.long(), packed)
    key = DropoutKey(dropout, SEED, STEP, batch.sample_index)

    audio_hidden, audio = model.encode_audio(patches)
    text_hidden, text = model.encode_text(token_ids, layout, key)
    logits = model.logit_scale.value.exp() * audio @ text.T
    contrastive = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean())
    if config.halve_contrastive:
        contrastive = contrastive / 2

    decoded = model.decode_caption(text_hidden, layout, audio_hidden, patches.layout, key)
    log_p = model.caption_decoder.logits(decoded).log_softmax(-1)
    per_caption = []
    for row, length in enumerate(batch.token_lengths.tolist()):
        following = token_ids[row, 1:length]
        per_caption.append(-log_p[row, torch.arange(length - 1), following])
    if config.caption_reduction == "caption":
        captioning = torch.stack([nll.mean() for nll in per_caption]).mean()
    else:
        captioning = torch.cat(per_caption).mean()

    loss = contrastive + config.caption_weight * captioning
    model.zero_grad()
    loss.backward()
    losses = {
        "loss": loss.detach(),
        "contrastive": contrastive.detach(),
        "captioning": captioning.detach(),
        "logit_scale": model.logit_scale.value.detach().exp(),
    }
    return losses, gradients(model), keep


def run(model: AudioText, objective: ContrastiveCaptioning, inputs: Any) -> tuple[Report, dict[str, Tensor]]:
    model.zero_grad()
    report = objective.backward(model, inputs)
    return report, gradients(model)


def objective_of(
    config: ContrastiveRunConfig, settings: ContrastiveObjectiveConfig, dropout: float = 0.0
) -> ContrastiveCaptioning:
    return ContrastiveCaptioning(settings, replace(config, seed=SEED), WORLD, dropout)


def assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]):
    """Within 1e-5 of each tensor's largest entry, or 5 float32 ulps of the largest of all.

    The second for sums that cancel: a pooler's key bias has no gradient at all, only rounding.
    """
    assert found.keys() == expected.keys()
    noise = 3e-7 * max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        budget = max(1e-5 * float(gradient.abs().max()), noise)
        torch.testing.assert_close(
            found[name].double(), gradient, rtol=0, atol=budget, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(
    ("stash", "blocks"), [(0, "by_hand"), *((level, "auto") for level in (0, 1, 2, 3, 6, 10)), (10, "by_hand")]
)
@pytest.mark.parametrize("micro_batch_size", [1, 2, 64])
@pytest.mark.parametrize(("reduction", "dropout"), [("caption", 0.3), ("token", 0.0)])
def test_the_gradient_is_the_full_batchs_whatever_the_micro_batch_stash_and_layout(
    model: AudioText,
    batch: AudioTextBatch,
    contrastive_config: ContrastiveRunConfig,
    layout: Literal["packed", "padded"],
    stash: Stash,
    blocks: Blocks,
    micro_batch_size: int,
    reduction: Literal["caption", "token"],
    dropout: float,
):
    settings = ContrastiveObjectiveConfig(
        caption_weight=0.7,
        caption_reduction=reduction,
        max_patches=40,
        stash=stash,
        blocks=blocks,
        halve_contrastive=reduction == "token",
    )
    config = replace(contrastive_config, layout=layout, micro_batch_size=micro_batch_size)
    losses, expected, patches = literal(model, batch, settings, dropout)
    objective = objective_of(config, settings, dropout)
    report, found = run(model, objective, objective.prepare(batch, STEP))

    assert report.losses.keys() == losses.keys()
    for name, loss in losses.items():
        assert float(report.losses[name]) == pytest.approx(float(loss), rel=1e-5), name
    assert_gradients(found, expected)
    assert report.valid_tokens == int(patches.sum()) + sum(TOKENS)
    assert report.model_flops == 3 * model.flops(patches, batch.token_lengths) + 6 * len(TOKENS) ** 2 * 16


@pytest.mark.parametrize("stash", [0, 10])
def test_a_second_gradient_of_the_same_step_is_the_same_bit_for_bit(
    model: AudioText, batch: AudioTextBatch, contrastive_config: ContrastiveRunConfig, stash: Literal[0, 10]
):
    objective = objective_of(contrastive_config, ContrastiveObjectiveConfig(max_patches=20, stash=stash), 0.3)
    inputs = objective.prepare(batch, STEP)
    (first, once), (second, twice) = run(model, objective, inputs), run(model, objective, inputs)
    assert all(torch.equal(first.losses[name], second.losses[name]) for name in first.losses)
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_dropout_changes_from_step_to_step(
    model: AudioText, batch: AudioTextBatch, contrastive_config: ContrastiveRunConfig
):
    objective = objective_of(contrastive_config, ContrastiveObjectiveConfig(), 0.3)
    losses = [float(run(model, objective, objective.prepare(batch, step))[0].losses["loss"]) for step in (1, 2)]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_a_long_clip_is_seen_through_a_random_subset_of_its_patches(
    batch: AudioTextBatch, contrastive_config: ContrastiveRunConfig
):
    config = replace(contrastive_config, layout="packed", micro_batch_size=64)
    whole = objective_of(config, ContrastiveObjectiveConfig()).prepare(batch, STEP)[0].audio
    objective = objective_of(config, ContrastiveObjectiveConfig(max_patches=40))
    lengths = whole.layout.lengths.tolist()
    assert lengths == [48, 24, 8, 56, 32]
    chosen = []
    for step in (STEP, STEP + 1):
        some = objective.prepare(batch, step)[0].audio
        assert some.layout.lengths.tolist() == [40, 24, 8, 40, 32]
        first = slice(0, 40)
        numbers = (8 * some.positions.time + some.positions.freq)[first]
        assert bool((numbers.diff() > 0).all())
        assert torch.equal(some.values[first], whole.values[:48][numbers])
        chosen.append(numbers.tolist())
    assert chosen[0] != chosen[1]
    assert chosen[0] != list(range(40))


@pytest.mark.parametrize("stash", [0, 10])
def test_without_a_captioning_weight_nothing_is_decoded(
    model: AudioText,
    batch: AudioTextBatch,
    contrastive_config: ContrastiveRunConfig,
    stash: Literal[0, 10],
    monkeypatch: pytest.MonkeyPatch,
):
    """The gradient is the contrastive loss's alone; the network has no decoder, and one that had would not run it."""
    settings = ContrastiveObjectiveConfig(caption_weight=0.0, max_patches=40, stash=stash)
    losses, expected, _ = literal(model, batch, settings, dropout=0.3)
    towers = build_model(replace(contrastive_config, objective=settings))
    assert isinstance(towers, AudioText)
    load_into(towers, {n: t for n, t in model.state_dict().items() if n in towers.state_dict()}, Path("model"))
    objective = objective_of(contrastive_config, settings, 0.3)
    report, found = run(towers, objective, objective.prepare(batch, STEP))
    decoder = {name for name in expected if name.startswith("caption_decoder.")}
    assert decoder
    assert_gradients(found, {name: g for name, g in expected.items() if name not in decoder})
    assert report.losses.keys() == {"loss", "contrastive", "logit_scale"}
    for name, value in report.losses.items():
        torch.testing.assert_close(value.double(), losses[name].double(), rtol=1e-5, atol=0)

    monkeypatch.setattr(AudioText, "decode_caption", None)
    again, whole = run(model, objective, objective.prepare(batch, STEP))
    assert torch.equal(again.losses["loss"], report.losses["loss"])
    assert not decoder & whole.keys()


@pytest.mark.parametrize("stash", [0, 10])
def test_bf16_gives_a_gradient_in_the_same_direction(
    model: AudioText, batch: AudioTextBatch, contrastive_config: ContrastiveRunConfig, stash: Literal[0, 10]
):
    """Budget: bf16 keeps 8 bits, so the cosine of the whole gradient stays within 1e-2 of 1."""
    both = []
    for precision in ("fp32", "bf16"):
        config = replace(contrastive_config, precision=precision)
        objective = objective_of(config, ContrastiveObjectiveConfig(stash=stash), 0.1)
        report, found = run(model, objective, objective.prepare(batch, STEP))
        assert report.losses["loss"].dtype == torch.float32
        assert all(g.dtype == torch.float32 for g in found.values())
        both.append(torch.cat([g.flatten() for g in found.values()]))
    assert float(torch.cosine_similarity(both[0], both[1], dim=0)) > 0.99


def test_a_clip_too_short_for_a_patch_is_refused(contrastive_config: ContrastiveRunConfig):
    batch = collate([np.full(n, 900, np.int16) for n in (9_000, 2_400)], [0, 1], [np.array([0, 7, 2], np.int32)] * 2)
    objective = objective_of(contrastive_config, ContrastiveObjectiveConfig())
    with pytest.raises(InputError, match="too short for one patch"):
        objective.prepare(batch, STEP)
