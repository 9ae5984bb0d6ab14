"""What the HEAR API asks of a module, of both stages; and that the embeddings are the model's own."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cacophony.engine.evaluate import hear
from cacophony.engine.evaluate.hear import (
    HearModel,
    get_scene_embeddings,
    get_timestamp_embeddings,
    load_model,
)
from cacophony.engine.inference import load
from cacophony.errors import InputError
from torch import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(scope="module", params=["mae_run", "contrastive_run"])
def run(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def model(run: Path) -> HearModel:
    return load_model(str(run))


def noise(sounds: int, samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(sounds, samples, generator=torch.Generator().manual_seed(seed))


def test_the_model_says_what_the_api_asks_for(model: HearModel):
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate == 16_000
    for size in (model.scene_embedding_size, model.timestamp_embedding_size):
        assert isinstance(size, int)
        assert size == 16
    assert not model.training


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("samples", [0, 1, 2_400, 2_401, 16_000, 33_333])
def test_embeddings_of_any_length_have_the_shapes_asked_for(model: HearModel, device: str, samples: int):
    model = model.to(device)
    audio = noise(3, samples).to(device)
    scenes = get_scene_embeddings(audio, model)
    embeddings, times = get_timestamp_embeddings(audio, model)
    assert scenes.shape == (3, model.scene_embedding_size)
    count = max(1, math.ceil(samples / 160) // 16)
    assert embeddings.shape == (3, count, model.timestamp_embedding_size)
    assert times.shape == (3, count)
    for tensor in (scenes, embeddings, times):
        assert tensor.dtype == torch.float32
        assert tensor.device.type == device
        assert torch.isfinite(tensor).all()


def test_times_are_milliseconds_that_rise_within_the_sound(model: HearModel):
    _, times = get_timestamp_embeddings(noise(2, 32_000), model)
    assert torch.equal(times[0], times[1])
    torch.testing.assert_close(times[0, :3], torch.tensor([87.5, 247.5, 407.5]))
    assert (times.diff(dim=1) > 0).all()
    assert times.min() > 0
    assert times.max() < 2_000


def test_a_click_changes_the_embedding_of_its_time_most(model: HearModel):
    """Budget: the nearest time, of the patches that overlap the click at all."""
    quiet = noise(1, 32_000) * 0.01
    click = quiet.clone()
    click[0, 16_000:16_080] += 0.9  # at 1000 to 1005 ms
    before, times = get_timestamp_embeddings(quiet, model)
    after, _ = get_timestamp_embeddings(click, model)
    change = (after - before).norm(dim=-1)[0]
    assert abs(times[0, int(change.argmax())] - 1_002.5) <= 90


def test_scenes_are_the_models_own_embeddings(contrastive_run: Path, mae_run: Path):
    audio = noise(3, 20_000)
    whole = load(contrastive_run, device="cpu").embed_audio([row.numpy() for row in audio])
    np.testing.assert_allclose(get_scene_embeddings(audio, load_model(contrastive_run)), whole, atol=1e-6)
    stage1 = load_model(mae_run)
    frames, _ = get_timestamp_embeddings(audio, stage1)
    torch.testing.assert_close(get_scene_embeddings(audio, stage1), frames.mean(dim=1), atol=1e-6, rtol=0)


def test_a_sound_does_not_depend_on_its_company(model: HearModel, monkeypatch: pytest.MonkeyPatch):
    audio = noise(5, 20_000)
    together = get_scene_embeddings(audio, model), get_timestamp_embeddings(audio, model)[0]
    monkeypatch.setattr(hear, "_PATCHES_AT_ONCE", 100)  # one sound at once
    alone = get_scene_embeddings(audio, model), get_timestamp_embeddings(audio, model)[0]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_long_sound_is_seen_whole(model: HearModel):
    audio = noise(1, 16_000 * 31)  # more patches than inference takes
    assert get_timestamp_embeddings(audio, model)[0].shape[1] == 193
    changed = audio.clone()
    changed[:, -5_000:] = 0
    assert (get_scene_embeddings(audio, model) - get_scene_embeddings(changed, model)).abs().max() > 0


def test_a_fixed_length_cuts_or_fills_with_silence(run: Path, model: HearModel):
    fixed = load_model(run, fixed_seconds=1.0)
    long, short = noise(2, 30_000), noise(2, 7_000)
    filled = torch.cat([short, torch.zeros(2, 9_000)], dim=1)
    for given, same in ((long, long[:, :16_000]), (short, filled)):
        torch.testing.assert_close(get_scene_embeddings(given, fixed), get_scene_embeddings(same, model))
        torch.testing.assert_close(get_timestamp_embeddings(given, fixed), get_timestamp_embeddings(same, model))
        assert (get_scene_embeddings(given, fixed) - get_scene_embeddings(given, model)).abs().max() > 1e-4


def test_a_layer_can_be_trained_on_top(model: HearModel):
    layer = torch.nn.Linear(16, 2)
    layer(get_scene_embeddings(noise(2, 9_000), model)).sum().backward()
    layer(get_timestamp_embeddings(noise(2, 9_000), model)[0]).sum().backward()
    assert layer.weight.grad is not None
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_no_sound_gives_no_embedding(model: HearModel):
    assert get_scene_embeddings(noise(0, 9_000), model).shape == (0, 16)
    embeddings, times = get_timestamp_embeddings(noise(0, 9_000), model)
    assert (len(embeddings), len(times)) == (0, 0)


def test_wrong_arguments_are_named(run: Path, model: HearModel, tmp_path: Path):
    with pytest.raises(InputError, match=r"\(9000,\).*\[sounds, samples\]"):
        get_scene_embeddings(torch.zeros(9_000), model)
    with pytest.raises(InputError, match="not a model directory"):
        load_model(tmp_path)
    with pytest.raises(InputError, match=r"fixed_seconds is 0\.1"):
        load_model(run, fixed_seconds=0.1)
