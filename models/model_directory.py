"""A model on disk in Hugging Face's layout: ``config.json``, ``model.safetensors`` and, with text, a tokenizer.

``cacophony train`` and ``cacophony convert`` write it; :func:`cacophony.load`, ``--init`` and, once
:mod:`cacophony.models.hub` is imported, transformers' ``AutoModel`` read it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..json_file import read_json, write_json
from ..kernels.log_mel import SAMPLE_RATE
from .audio_mae import AudioMAE
from .audio_text import AudioText
from .config import MAX_PATCHES, MAX_TEXT_TOKENS, AudioMAEConfig, AudioTextConfig, NetworkConfig
from .config_io import from_dict, to_dict
from .network import build_network
from .tensor_shapes import check_tensors, shapes
from .weights import load_tensors, save_tensors

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
_TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_PROCESSOR_CONFIG_FILE = "processor_config.json"

MODEL_TYPES: dict[str, type[AudioMAEConfig] | type[AudioTextConfig]] = {
    "cacophony": AudioTextConfig,
    "cacophony_mae": AudioMAEConfig,
}
_ARCHITECTURES = {"cacophony": "CacophonyModel", "cacophony_mae": "CacophonyMAEModel"}


def is_model_directory(path: Path) -> bool:
    """Whether ``path`` holds a model in this layout, of this project."""
    return (path / CONFIG_FILE).is_file() and (path / MODEL_FILE).is_file()


def write_config(directory: Path, config: NetworkConfig) -> None:
    """Write ``config.json``: the network's sizes, and what transformers needs to find its class."""
    model_type = next(name for name, cls in MODEL_TYPES.items() if isinstance(config, cls))
    content = {
        "model_type": model_type,
        "architectures": [_ARCHITECTURES[model_type]],
        "dtype": "float32",
        "network": to_dict(config),
    }
    write_json(directory / CONFIG_FILE, content)


def write_model(directory: Path, config: NetworkConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors`` into an existing directory."""
    write_config(directory, config)
    save_tensors(tensors, directory / MODEL_FILE)


def write_processor(directory: Path, max_text_tokens: int) -> None:
    """Write what transformers needs beside ``tokenizer.json`` to build the processor."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_text_tokens,
        "split_special_tokens": True,  # "</s>" inside a caption is text
        **special,
    }
    extractor = {
        "feature_extractor_type": "CacophonyFeatureExtractor",
        "sampling_rate": SAMPLE_RATE,
        "max_patches": MAX_PATCHES,
    }
    write_json(directory / _TOKENIZER_CONFIG_FILE, tokenizer)
    write_json(
        directory / _PROCESSOR_CONFIG_FILE, {"processor_class": "CacophonyProcessor", "feature_extractor": extractor}
    )


def read_max_text_tokens(directory: Path) -> int:
    """Return how many tokens of a text the model of ``directory`` is to see; raises InputError for a damaged file."""
    path = directory / _TOKENIZER_CONFIG_FILE
    limit = read_json(path).get("model_max_length") if path.is_file() else MAX_TEXT_TOKENS
    if not isinstance(limit, int) or limit < 2:
        raise InputError(f"{path}: model_max_length is {limit!r}, expected an integer of at least 2")
    return limit


def read_config(directory: Path) -> NetworkConfig:
    """Read the network's sizes; raises InputError where ``directory`` is no model directory or is damaged."""
    if not is_model_directory(directory):
        raise InputError(
            f"{directory}: is not a model directory; expected {CONFIG_FILE} and {MODEL_FILE}, as `cacophony train` "
            "(once it has saved) and `cacophony convert` write them"
        )
    path = directory / CONFIG_FILE
    raw = read_json(path)
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        raise InputError(f"{path}: model_type is {model_type!r}, expected {' or '.join(MODEL_TYPES)}")
    return from_dict(MODEL_TYPES[model_type], raw.get("network"), str(path))


def read_model(directory: Path) -> AudioMAE | AudioText:
    """Read the network of a model directory, weights on the host.

    Raises InputError that names the file where something is missing, damaged or does not fit.
    """
    config, file = read_config(directory), directory / MODEL_FILE
    tensors = load_tensors(file)
    with torch.device("meta"):  # sizes alone: nothing is allocated for a config that the file does not bear out
        model = build_network(config)
    check_tensors(shapes(tensors), shapes(model.state_dict()), file)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model
