"""Where a run's first weights come from, and that the report says so for every parameter."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.data.tokens import CaptionTokenizer
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig
from cacophony.engine.inference import load
from cacophony.engine.initialisation import initialise, tokenizer_spec
from cacophony.engine.trainer import train
from cacophony.errors import InputError
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText
from cacophony.models.layers import init_weights
from cacophony.models.model_directory import read_model, write_model, write_processor
from cacophony.models.roberta import read_roberta
from transformers import RobertaConfig, RobertaModel

Refused = Callable[[list[str]], str]
Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def roberta(contrastive_config: ContrastiveRunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa of the tiny run's sizes, with a tokenizer of its own."""
    text, path = contrastive_config.model.text, tmp_path_factory.mktemp("roberta")
    config = RobertaConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        intermediate_size=text.mlp_width,
        max_position_embeddings=text.max_positions,
        type_vocab_size=1,
    )
    torch.manual_seed(1)
    RobertaModel(config).save_pretrained(path)
    CaptionTokenizer.train(["a tokenizer of RoBERTa's own"], text.vocab_size).save(path)
    return path


def test_stage_2_takes_its_audio_encoder_from_stage_1_and_its_text_encoder_from_roberta(
    contrastive_config: ContrastiveRunConfig, mae_run: Path, roberta: Path
):
    config = replace(contrastive_config, text_init=str(roberta))
    model, random = AudioText(config.model), AudioText(config.model)
    origins = {origin.source: origin for origin in initialise(model, config, mae_run)}
    init_weights(random, config.seed)
    encoder, text = read_model(mae_run), read_roberta(str(roberta), config.model.text)
    assert isinstance(encoder, AudioMAE)
    assert origins.keys() == {str(mae_run), str(roberta), "seed 0 (random)"}
    sources = {name: origin.source for origin in origins.values() for name in origin.names}
    assert sources.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        if name.startswith("audio_encoder."):
            assert sources[name] == str(mae_run)
            assert torch.equal(parameter, encoder.get_parameter(name.removeprefix("audio_")))
        elif name.startswith("text_encoder."):
            assert sources[name] == str(roberta)
            assert torch.equal(parameter, text[name.removeprefix("text_encoder.")])
        else:
            assert sources[name] == "seed 0 (random)"
            assert torch.equal(parameter, random.get_parameter(name))
    summary = origins["seed 0 (random)"].summary(list(origins.values()))
    assert "audio_pooler, text_pooler, caption_decoder, logit_scale" in summary


@pytest.mark.parametrize("stage", ["mae", "contrastive"])
def test_a_run_can_start_from_a_whole_model_of_its_stage(request: pytest.FixtureRequest, stage: str):
    config: MaeRunConfig | ContrastiveRunConfig = request.getfixturevalue(f"{stage}_config")
    run: Path = request.getfixturevalue(f"{stage}_run")
    model = AudioMAE(config.model) if isinstance(config, MaeRunConfig) else AudioText(config.model)
    (origin,) = initialise(model, config, run)
    assert origin.source == str(run)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), read_model(run).parameters(), strict=True))


def test_train_writes_which_parameters_came_from_where(
    contrastive_config: ContrastiveRunConfig,
    mae_run: Path,
    roberta: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    config = replace(
        contrastive_config,
        text_init=str(roberta),
        data=replace(contrastive_config.data, tokenizer="auto"),
        steps=3,
    )
    train("contrastive", config, shards, tmp_path / "run", init=mae_run)
    origins = json.loads((tmp_path / "run" / "initialisation.json").read_text())["origins"]
    names = [name for origin in origins for name in origin["parameters"]]
    assert sorted(names) == sorted(name for name, _ in AudioText(config.model).named_parameters())
    assert {origin["source"] for origin in origins} == {str(mae_run), str(roberta), "seed 0 (random)"}
    log = capsys.readouterr().err
    assert f"weights from {roberta}: text_encoder" in log
    # The tokenizer is that of the text weights: another one's ids would name other words.
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (roberta / "tokenizer.json").read_text()


def test_auto_takes_the_tokenizer_of_the_text_weights(
    contrastive_config: ContrastiveRunConfig, contrastive_run: Path, mae_run: Path
):
    auto = replace(contrastive_config, data=replace(contrastive_config.data, tokenizer="auto"))
    assert tokenizer_spec(auto, None) == tokenizer_spec(auto, mae_run) == "auto"
    assert tokenizer_spec(auto, contrastive_run) == str(contrastive_run)
    assert tokenizer_spec(replace(auto, text_init="roberta-base"), mae_run) == "roberta-base"
    assert tokenizer_spec(contrastive_config, None) == "train"


def test_a_tokenizer_that_is_not_the_text_weights_own_is_refused(
    command: Command, refused: Refused, contrastive_run: Path, roberta: Path, tmp_path: Path
):
    for flags in (["--text-init", str(roberta)], ["--init", str(contrastive_run)]):
        message = refused(command("contrastive", tmp_path / "out", *flags))
        assert "data.tokenizer is train" in message
        assert not (tmp_path / "out").exists()


def test_a_roberta_of_other_sizes_is_refused(command: Command, refused: Refused, roberta: Path, tmp_path: Path):
    flags = ["--text-init", str(roberta), "--data.tokenizer", "auto", "--model.text.layers", "2"]
    assert "set model.text.layers" in refused(command("contrastive", tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()


def test_a_model_without_tokenizer_takes_and_gives_token_ids(contrastive_run: Path, tmp_path: Path):
    source = read_model(contrastive_run)
    assert isinstance(source, AudioText)
    write_model(tmp_path, source.config, source.state_dict())
    with_text, without = load(contrastive_run, device="cpu"), load(tmp_path, device="cpu")
    texts = ["a dog barks", "rain on a tin roof, far away"]
    assert with_text.tokenizer is not None
    ids = [row.tolist() for row in with_text.tokenizer.encode(texts, with_text.max_text_tokens)]
    assert (without.embed_text(ids) == with_text.embed_text(texts)).all()
    wave = torch.randn(9_000) * 0.1
    tokens = without.caption_tokens([wave], method="greedy")
    assert tokens == with_text.caption_tokens([wave], method="greedy")
    assert " ".join(with_text.tokenizer.decode(tokens[0]).split()) == with_text.caption([wave], method="greedy")[0]
    for use in (lambda: without.embed_text(texts), lambda: without.caption([wave])):
        with pytest.raises(InputError, match=r"no tokenizer.*--tokenizer"):
            use()
    too_deep: Any = [[1]]
    for wrong in ([], [300], [-1], too_deep, [0] * 41):
        with pytest.raises(InputError, match="token ids"):
            without.embed_text([wrong])


def test_the_longest_text_is_the_runs(contrastive_run: Path, contrastive_config: ContrastiveRunConfig, tmp_path: Path):
    assert load(contrastive_run, device="cpu").max_text_tokens == contrastive_config.data.max_text_tokens
    source = read_model(contrastive_run)
    assert isinstance(source, AudioText)
    write_model(tmp_path, source.config, source.state_dict())
    write_processor(tmp_path, 1000)
    assert load(tmp_path, device="cpu").max_text_tokens == contrastive_config.model.text.max_positions


def test_the_model_of_a_run_is_its_newest_checkpoint(contrastive_run: Path):
    newest = (contrastive_run / "checkpoints" / "step-00000006" / "model.safetensors").read_bytes()
    assert (contrastive_run / "model.safetensors").read_bytes() == newest


def test_a_run_from_a_random_audio_encoder_refuses_an_init(contrastive_config: ContrastiveRunConfig, mae_run: Path):
    config = replace(contrastive_config, audio_init="random")
    model = AudioText(config.model)
    with pytest.raises(InputError, match=r"audio_init is random, but --init .* leave --init out"):
        initialise(model, config, mae_run)
    (origin,) = initialise(model, config, None)
    assert origin.source == "seed 0 (random)"
