"""RoBERTa's weights for the text encoder, from a Hugging Face directory or the hub, safetensors only."""

from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import torch
from torch import Tensor

from ..errors import InputError
from ..json_file import read_json
from .config import TextConfig
from .weights import load_tensors

_WEIGHTS_FILE = "model.safetensors"
_CONFIG_FILE = "config.json"


def read_roberta(source: str, config: TextConfig) -> dict[str, Tensor]:
    """Return the state of a :class:`~.text.TextEncoder` of ``config``'s sizes from a RoBERTa model.

    ``source`` is a local directory with ``config.json`` and ``model.safetensors``, as transformers' ``save_pretrained``
    writes them, or a name on the Hugging Face hub. The position table is taken as it is: this encoder counts from row
    0, RoBERTa from row 2 (the authors do not shift it). Raises InputError where the files cannot be had or their sizes
    are not ``config``'s, naming the field to change.
    """
    files = _local_files(Path(source)) if Path(source).is_dir() else _hub_files(source)
    raw = read_json(files[_CONFIG_FILE])
    heads = raw.get("num_attention_heads")
    if heads != config.heads:
        raise InputError(
            f"{source}: has {heads} attention heads, the text encoder {config.heads}; set model.text.heads"
        )
    tensors = {_plain_name(name): tensor for name, tensor in load_tensors(files[_WEIGHTS_FILE]).items()}
    _check_layers(tensors, config, source)
    return {name: tensor.float() for name, tensor in _text_encoder_state(tensors, config, source).items()}


def _local_files(directory: Path) -> dict[str, Path]:
    for name in (_CONFIG_FILE, _WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise InputError(
                f"{directory}: holds no {name}; expected a RoBERTa as transformers' save_pretrained writes it "
                "(pickled weights, pytorch_model.bin, are not read)"
            )
    return {name: directory / name for name in (_CONFIG_FILE, _WEIGHTS_FILE)}


def _hub_files(name: str) -> dict[str, Path]:
    try:
        return {file: Path(huggingface_hub.hf_hub_download(name, file)) for file in (_CONFIG_FILE, _WEIGHTS_FILE)}
    except Exception as error:  # whatever goes wrong on a network
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise InputError(
            f"text_init {name}: not a local directory, and not to be had from the Hugging Face hub ({reason}); give a "
            "directory with a RoBERTa, or --text-init random"
        ) from None


def _plain_name(name: str) -> str:
    """Drop the prefix of models with a head and the oldest checkpoints' names of a LayerNorm's parameters."""
    return (
        name.removeprefix("roberta.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias")
    )


def _check_layers(tensors: Mapping[str, Tensor], config: TextConfig, source: str) -> None:
    numbers = {int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer.")}
    if len(numbers) != config.layers:
        raise InputError(
            f"{source}: has {len(numbers)} layers, the text encoder {config.layers}; set model.text.layers"
        )


def _text_encoder_state(tensors: Mapping[str, Tensor], config: TextConfig, source: str) -> dict[str, Tensor]:
    width, mlp_width = config.width, config.mlp_width

    def take(name: str, shape: tuple[int, ...], field: str) -> Tensor:
        if name not in tensors:
            raise InputError(f"{source}: tensor {name} is missing; is this a RoBERTa?")
        if tuple(tensors[name].shape) != shape:
            raise InputError(
                f"{source}: tensor {name} has shape {tuple(tensors[name].shape)}, the text encoder {shape}; "
                f"set model.text.{field}"
            )
        return tensors[name]

    def dense(theirs: list[str], ours: str, in_features: int, out_features: int) -> dict[str, Tensor]:
        weights = [take(f"{name}.weight", (out_features, in_features), "mlp_width") for name in theirs]
        biases = [take(f"{name}.bias", (out_features,), "mlp_width") for name in theirs]
        return {f"{ours}.weight": torch.cat(weights), f"{ours}.bias": torch.cat(biases)}

    def norm(theirs: str, ours: str) -> dict[str, Tensor]:
        return {f"{ours}.{part}": take(f"{theirs}.{part}", (width,), "width") for part in ("weight", "bias")}

    state = {
        "word_embedding.weight": take("embeddings.word_embeddings.weight", (config.vocab_size, width), "vocab_size"),
        "position_embedding.weight": take(
            "embeddings.position_embeddings.weight", (config.max_positions, width), "max_positions"
        ),
        "type_embedding.weight": take("embeddings.token_type_embeddings.weight", (1, width), "width"),
        **norm("embeddings.LayerNorm", "norm"),
    }
    for number in range(config.layers):
        layer, block = f"encoder.layer.{number}", f"blocks.{number}"
        own = f"{layer}.attention"
        state |= dense([f"{own}.self.{n}" for n in ("query", "key", "value")], f"{block}.attention.qkv", width, width)
        state |= dense([f"{own}.output.dense"], f"{block}.attention.out", width, width)
        state |= norm(f"{own}.output.LayerNorm", f"{block}.attention_norm")
        state |= dense([f"{layer}.intermediate.dense"], f"{block}.mlp_in", width, mlp_width)
        state |= dense([f"{layer}.output.dense"], f"{block}.mlp_out", mlp_width, width)
        state |= norm(f"{layer}.output.LayerNorm", f"{block}.mlp_norm")
    return state
