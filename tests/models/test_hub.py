"""The transformers form of the networks: the same files, the same numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cacophony.data.tokens import CaptionTokenizer
from cacophony.errors import InputError
from cacophony.models.audio_text import AudioText
from cacophony.models.config import AUDIO_MAE_SIZES, AUDIO_TEXT_SIZES
from cacophony.models.hub import CacophonyMAEModel, CacophonyModel, CacophonyProcessor
from cacophony.models.layers import init_weights
from cacophony.models.model_directory import read_config, read_model, write_model, write_processor
from cacophony.models.network import build_network
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

TEXTS = ["rain on a tin roof", "a dog </s> barks", "é" * 60]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model = build_network(AUDIO_TEXT_SIZES["demo"])
    init_weights(model, 0)
    write_model(path, AUDIO_TEXT_SIZES["demo"], model.state_dict())
    CaptionTokenizer.train(TEXTS, 300).save(path)
    write_processor(path, 24)
    return path


@pytest.fixture
def network(directory: Path) -> AudioText:
    network = read_model(directory)
    assert isinstance(network, AudioText)
    return network.eval()


def waves() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, n).astype(np.float32) for n in (16_000, 9_000, 3_000)]


def test_auto_classes_load_the_directory(directory: Path, network: AudioText):
    model = AutoModel.from_pretrained(directory)
    assert isinstance(model, CacophonyModel)
    assert model.config.sizes() == AUDIO_TEXT_SIZES["demo"]
    expected = network.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert type(AutoConfig.from_pretrained(directory)) is type(model.config)
    assert isinstance(AutoProcessor.from_pretrained(directory), CacophonyProcessor)


def test_save_pretrained_and_back_is_exact(directory: Path, tmp_path: Path):
    model, processor = AutoModel.from_pretrained(directory), AutoProcessor.from_pretrained(directory)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert read_config(tmp_path) == read_config(directory)
    for again in (AutoModel.from_pretrained(tmp_path), read_model(tmp_path)):
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    for audio, text in ((waves(), None), (None, TEXTS)):
        before = processor(audio=audio, text=text)
        after = AutoProcessor.from_pretrained(tmp_path)(audio=audio, text=text)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_processor_makes_the_ids_of_the_caption_tokenizer(directory: Path):
    inputs = AutoProcessor.from_pretrained(directory)(text=TEXTS)
    expected = CaptionTokenizer.load(directory).encode(TEXTS, 24)
    for row, mask, ids in zip(inputs["input_ids"], inputs["attention_mask"], expected, strict=True):
        assert row[mask.bool()].tolist() == ids.tolist()


def test_the_model_gives_the_networks_embeddings_logits_and_gradient(directory: Path, network: AudioText):
    model, processor = AutoModel.from_pretrained(directory).eval(), AutoProcessor.from_pretrained(directory)
    inputs = processor(audio=waves(), text=TEXTS, sampling_rate=16_000)
    out = model(**inputs, return_loss=True)
    torch.testing.assert_close(
        out.logits_per_audio, network.logit_scale.value.exp() * out.audio_embeds @ out.text_embeds.T
    )
    assert torch.equal(out.logits_per_text, out.logits_per_audio.T)
    diagonal = out.logits_per_audio.log_softmax(0).diagonal() + out.logits_per_audio.log_softmax(1).diagonal()
    torch.testing.assert_close(out.loss, -diagonal.mean())
    out.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith("audio_encoder."))
    ids = model.generate_captions(**processor(audio=waves()), temperature=0.0, max_length=12)
    assert ids.shape == (3, 12)
    assert bool((ids[:, 0] == 0).all())


def test_the_masked_autoencoder_is_registered_too(tmp_path: Path):
    network = build_network(AUDIO_MAE_SIZES["demo"])
    init_weights(network, 1)
    write_model(tmp_path, AUDIO_MAE_SIZES["demo"], network.state_dict())
    model = AutoModel.from_pretrained(tmp_path)
    assert isinstance(model, CacophonyMAEModel)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_parameter_that_no_file_holds_gets_its_initial_value_and_the_others_stay(directory: Path, tmp_path: Path):
    model = build_network(AUDIO_TEXT_SIZES["demo"])
    init_weights(model, 7)
    state = model.state_dict()
    bias = state.pop("audio_encoder.blocks.0.mlp_in.bias")
    write_model(tmp_path, AUDIO_TEXT_SIZES["demo"], state)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"audio_encoder.blocks.0.mlp_in.bias"}
    found = loaded.state_dict()
    assert torch.equal(found.pop("audio_encoder.blocks.0.mlp_in.bias"), torch.zeros_like(bias))
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_model_from_a_config_alone_has_initial_weights(directory: Path):
    model = AutoModel.from_config(AutoConfig.from_pretrained(directory))
    state = model.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    assert bool((state["audio_encoder.norm.weight"] == 1).all())
    assert 0.015 < float(state["text_encoder.word_embedding.weight"].std()) < 0.025


def test_wrong_audio_is_refused(directory: Path):
    extractor = AutoFeatureExtractor.from_pretrained(directory)
    with pytest.raises(InputError, match="44100"):
        extractor(waves(), sampling_rate=44_100)
    with pytest.raises(InputError, match=r"\(2, 900\)"):
        extractor([np.zeros((2, 900))])
    with pytest.raises(InputError, match="neither"):
        AutoProcessor.from_pretrained(directory)()
