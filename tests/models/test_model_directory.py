"""A model directory comes back exactly, and says what is wrong with it."""

import json
from pathlib import Path

import pytest
import torch
from cacophony.errors import InputError
from cacophony.models.config import (
    AUDIO_MAE_SIZES,
    AUDIO_TEXT_SIZES,
    MAX_TEXT_TOKENS,
    NetworkConfig,
)
from cacophony.models.layers import init_weights
from cacophony.models.model_directory import (
    is_model_directory,
    read_config,
    read_max_text_tokens,
    read_model,
    write_model,
    write_processor,
)
from cacophony.models.network import build_network

SIZES = [AUDIO_MAE_SIZES["demo"], AUDIO_TEXT_SIZES["demo"]]


def write(directory: Path, config: NetworkConfig) -> torch.nn.Module:
    model = build_network(config)
    init_weights(model, 5)
    write_model(directory, config, model.state_dict())
    return model


@pytest.mark.parametrize("config", SIZES, ids=["mae", "audio_text"])
def test_a_model_comes_back_exactly(tmp_path: Path, config: NetworkConfig):
    assert not is_model_directory(tmp_path)
    model = write(tmp_path, config)
    assert is_model_directory(tmp_path)
    assert read_config(tmp_path) == config
    found = read_model(tmp_path)
    assert type(found) is type(model)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "clap"}, r"model_type is 'clap', expected cacophony or cacophony_mae"),
        ({"network": None}, "None, expected a table"),
        ({"network": {"encoder": {"widht": 3}}}, r"encoder\.widht is unknown; did you mean encoder\.width"),
        ({"network": {"encoder": {"width": 97}}}, "width 97 is not an even multiple of heads"),
        ({"network": {"encoder": {"layers": 10**9}}}, "layers is 1000000000; expected 1 to 256"),
        ({"network": {"encoder": {"width": 2**40}}}, "width is 1099511627776; expected 1 to 16777216"),
        ({"network": {"encoder": {"width": 2**24}}}, r"model\.safetensors: tensor .* has shape"),
        ({"network": {}}, r"model\.safetensors: tensor .* has shape"),
    ],
)
def test_a_config_that_is_wrong_is_named(tmp_path: Path, change: dict[str, object], message: str):
    write(tmp_path, AUDIO_MAE_SIZES["demo"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if message.startswith("model"):
        message = r"config\.json.*" + message if "safetensors" not in message else message
    with pytest.raises(InputError, match=message):
        read_model(tmp_path)


def test_a_directory_without_a_model_says_what_writes_one(tmp_path: Path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"not a model directory.*cacophony train.*cacophony convert"):
            read_config(path)


def test_the_longest_text_is_the_tokenizers(tmp_path: Path):
    assert read_max_text_tokens(tmp_path) == MAX_TEXT_TOKENS == 77
    write_processor(tmp_path, 40)
    assert read_max_text_tokens(tmp_path) == 40
    for wrong in (1, "40", None):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": wrong}))
        with pytest.raises(InputError, match="model_max_length"):
            read_max_text_tokens(tmp_path)


def test_others_may_read_a_model_as_they_may_its_directory(tmp_path: Path):
    for mode in (0o755, 0o700):
        tmp_path.chmod(mode)
        write(tmp_path, AUDIO_MAE_SIZES["demo"])
        assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode & 0o666
