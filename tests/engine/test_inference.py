"""A trained model in use: the same answer for a clip however it comes and whatever it comes with."""

from pathlib import Path

import cacophony
import numpy as np
import pytest
import soundfile
import torch
from cacophony.data.audio import read_audio
from cacophony.data.synthetic import Corpus
from cacophony.engine.inference import Cacophony, Method, load
from cacophony.errors import InputError


@pytest.fixture(scope="module")
def model(contrastive_run: Path) -> Cacophony:
    return load(contrastive_run, device="cpu")


@pytest.fixture(scope="module")
def files(corpus: Corpus) -> list[Path]:
    return sorted(corpus.test_dir.glob("*.wav"))[:5]


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def test_the_package_offers_load_itself(contrastive_run: Path, files: list[Path]):
    model = cacophony.load(contrastive_run, device="cpu")
    assert isinstance(model, cacophony.Cacophony)
    similarity = model.embed_audio(files) @ model.embed_text(["rain on a tin roof", "a dog"]).T
    assert similarity.shape == (5, 2)


def test_embeddings_are_unit_vectors_in_float32(model: Cacophony, files: list[Path]):
    for embeddings in (model.embed_audio(files), model.embed_text(["a bell rings", "", "ü" * 200])):
        assert embeddings.dtype == np.float32
        assert embeddings.shape[1] == 16
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)


def test_files_arrays_and_tensors_of_a_clip_have_one_embedding(model: Cacophony, files: list[Path]):
    waves = [read_audio(file) for file in files]
    expected = model.embed_audio(files)
    for same in (
        [str(f) for f in files],
        waves,
        [torch.from_numpy(w) for w in waves],
        [w.astype(float) for w in waves],
    ):
        np.testing.assert_array_equal(model.embed_audio(same), expected)


def test_int16_waves_are_scaled(model: Cacophony):
    wave = (noise(9_000) * 32768).astype(np.int16)
    np.testing.assert_array_equal(model.embed_audio([wave]), model.embed_audio([wave.astype(np.float32) / 32768]))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_an_embedding_does_not_depend_on_its_company(model: Cacophony, files: list[Path], batch_size: int):
    clips = [*files, noise(700), noise(50_000), noise(3_000)]
    texts = ["a dog", "a low bell rings only once, in the rain", ""]
    audio, text = model.embed_audio(clips), model.embed_text(texts)
    other = Cacophony(model.model, model.tokenizer, model.max_text_tokens, model.device, batch_size=batch_size)
    order = np.random.default_rng(0).permutation(len(clips))
    np.testing.assert_allclose(other.embed_audio([clips[i] for i in order]), audio[order], atol=1e-5)
    np.testing.assert_allclose(other.embed_text(texts[::-1]), text[::-1], atol=1e-5)


def test_a_long_clip_beyond_the_budget_has_one_embedding_in_any_company(contrastive_run: Path):
    model = load(contrastive_run, device="cpu", max_patches=24)
    long, short = noise(60_000), noise(5_000)
    alone = model.embed_audio([long])
    np.testing.assert_allclose(model.embed_audio([short, long])[1:], alone, atol=1e-5)
    np.testing.assert_allclose(model.embed_audio([noise(70_000, 5), short, long])[2:], alone, atol=1e-5)
    whole = load(contrastive_run, device="cpu").embed_audio([long])
    assert np.abs(whole - alone).max() > 1e-5


@pytest.mark.parametrize("samples", [0, 1, 159, 2_400, 2_401])
def test_a_clip_of_hardly_any_samples_is_finite(model: Cacophony, samples: int):
    for company in ([], [noise(9_000)]):
        assert np.isfinite(model.embed_audio([noise(samples), *company])).all()
        assert len(model.caption([noise(samples), *company], method="greedy")) == 1 + len(company)


def test_a_file_of_another_rate_in_stereo_is_nearly_the_same_clip(model: Cacophony, tmp_path: Path):
    """Budget 0.02 of a cosine: a tone survives resampling, up to its ends."""
    embeddings = []
    for rate in (16_000, 48_000):
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], axis=1), rate)
        embeddings.append(model.embed_audio([tmp_path / "tone.wav"])[0])
    assert float(embeddings[0] @ embeddings[1]) > 0.98


def test_nothing_gives_nothing(model: Cacophony):
    assert model.embed_audio([]).shape == model.embed_text([]).shape == (0, 16)
    assert model.caption([]) == []


@pytest.mark.parametrize("method", ["sample", "greedy", "beam"])
def test_captions_are_lines_of_text_and_repeatable(model: Cacophony, files: list[Path], method: Method):
    captions = model.caption(files[:3], method=method)
    assert len(captions) == 3
    assert all(isinstance(caption, str) for caption in captions)
    assert model.caption(files[:3], method=method) == captions


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_caption_does_not_depend_on_its_company(model: Cacophony, files: list[Path], method: Method):
    together = model.caption([*files[:2], noise(3_000)], method=method)
    assert model.caption(files[1:2], method=method) == together[1:2]


def test_the_seed_decides_a_sampled_caption(model: Cacophony, files: list[Path]):
    hot = [model.caption(files[:1], temperature=5.0, seed=seed)[0] for seed in (0, 1, 0)]
    assert hot[0] == hot[2] != hot[1]


def test_nearly_no_temperature_is_greedy(model: Cacophony, files: list[Path]):
    assert model.caption(files[:2], temperature=1e-6) == model.caption(files[:2], method="greedy")


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(model: Cacophony, files: list[Path], temperature: float):
    with pytest.raises(InputError, match="temperature"):
        model.caption(files, temperature=temperature)


def test_no_beam_is_refused(model: Cacophony, files: list[Path]):
    with pytest.raises(ValueError, match="beams"):
        model.caption(files, method="beam", beams=0)


def test_one_file_or_text_in_place_of_a_list_is_refused(model: Cacophony, files: list[Path]):
    """A string is a sequence of its letters, each of which would be embedded."""
    for one in (str(files[0]), files[0]):
        for use in (model.embed_audio, model.caption):
            with pytest.raises(InputError, match=r"expected a list of them"):
                use(one)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"rain on a roof.* expected a list of them"):
        model.embed_text("rain on a roof")


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (noise(16_000) * np.nan, "NaN or infinite"),
        (noise(16_000) * np.inf, "NaN or infinite"),
        (noise(16_000) * 2**15, "scale it"),
        ((noise(16_000) * 2**31).astype(np.int32), "int32"),
        ((noise(16_000), 44_100), "no samples"),
        (None, "no samples"),
    ],
    ids=["NaN", "infinite", "floats of integers", "int32", "wave and rate", "None"],
)
def test_a_wave_that_is_none_is_refused(model: Cacophony, wave: np.ndarray, message: str):
    for use in (model.embed_audio, model.caption):
        with pytest.raises(InputError, match=message):
            use([wave])


def test_a_wrong_method_or_seed_is_refused(model: Cacophony, files: list[Path]):
    with pytest.raises(InputError, match="method is 'best'; expected sample, greedy or beam"):
        model.caption(files, method="best")  # pyright: ignore[reportArgumentType]
    for seed in (-1, 2**63, [0, 0, 0, 0, 2**64]):
        with pytest.raises(InputError, match="seed"):
            model.caption(files, seed=seed)


def test_audio_that_is_none_is_named(model: Cacophony, tmp_path: Path):
    (tmp_path / "text.wav").write_text("no sound")
    for bad, message in (
        (tmp_path / "text.wav", "text.wav"),
        (tmp_path / "absent.wav", "absent.wav"),
        (np.zeros((2, 900)), r"\(2, 900\)"),
    ):
        with pytest.raises(InputError, match=message):
            model.embed_audio([noise(9_000), bad])


def test_a_run_that_is_not_of_stage_2_is_refused(mae_run: Path, tmp_path: Path):
    with pytest.raises(InputError, match="stage-1 model; expected stage 2"):
        load(mae_run)
    with pytest.raises(InputError, match="not a model directory"):
        load(tmp_path)


def test_a_device_that_is_not_there_is_refused(contrastive_run: Path):
    for device in ("cuda:99", "gpu"):
        with pytest.raises(InputError, match=device):
            load(contrastive_run, device=device)


def test_inference_needs_no_gradient(model: Cacophony):
    assert not any(p.requires_grad for p in model.model.parameters())
    assert not model.model.training
