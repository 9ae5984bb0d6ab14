"""The text encoder from RoBERTa's weights: the same causal network as transformers', with positions from 0."""

from pathlib import Path

import pytest
import torch
from cacophony.errors import InputError
from cacophony.kernels.layout import Padded
from cacophony.models.config import TextConfig
from cacophony.models.roberta import read_roberta
from cacophony.models.text import TextEncoder
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel

CONFIG = TextConfig(width=32, layers=3, heads=4, mlp_width=48, vocab_size=90, max_positions=20, dropout=0.0)


def tiny(layers: int = 3, heads: int = 4) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=90,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=48,
        max_position_embeddings=20,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.3,
        is_decoder=True,
    )


@pytest.fixture
def roberta(tmp_path: Path) -> RobertaModel:
    torch.manual_seed(3)
    model = RobertaModel(tiny(), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    return model


def test_the_encoder_computes_what_transformers_does_with_positions_from_0(roberta: RobertaModel, tmp_path: Path):
    encoder = TextEncoder(CONFIG)
    encoder.load_state_dict(read_roberta(str(tmp_path), CONFIG))
    ids = torch.randint(4, 90, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    with torch.no_grad():
        found = encoder(ids, Padded(mask))
        expected = roberta(ids, attention_mask=mask.long(), position_ids=torch.arange(9).expand(2, 9))
    torch.testing.assert_close(found[mask], expected.last_hidden_state[mask], rtol=0, atol=5e-6)


def test_a_model_with_a_head_gives_the_same_weights(tmp_path: Path):
    torch.manual_seed(4)
    whole = RobertaForMaskedLM(tiny())
    whole.save_pretrained(tmp_path / "head")
    whole.roberta.save_pretrained(tmp_path / "plain")
    first, second = (read_roberta(str(tmp_path / name), CONFIG) for name in ("head", "plain"))
    assert first.keys() == second.keys() == TextEncoder(CONFIG).state_dict().keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("layers", "heads", "message"),
    [(2, 4, r"has 2 layers.*model\.text\.layers"), (3, 2, r"has 2 attention heads.*model\.text\.heads")],
)
def test_other_sizes_name_the_field(tmp_path: Path, layers: int, heads: int, message: str):
    RobertaModel(tiny(layers, heads)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        read_roberta(str(tmp_path), CONFIG)


@pytest.mark.usefixtures("roberta")
def test_a_tensor_of_another_shape_or_missing_is_named(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"embeddings.word_embeddings.weight": torch.zeros(91, 32)}, file)
    with pytest.raises(InputError, match=r"word_embeddings\.weight.*\(91, 32\).*model\.text\.vocab_size"):
        read_roberta(str(tmp_path), CONFIG)
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"encoder\.layer\.1\.output\.dense\.bias is missing"):
        read_roberta(str(tmp_path), CONFIG)


@pytest.mark.usefixtures("roberta")
def test_pickled_weights_are_not_read(tmp_path: Path):
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no model\.safetensors.*not read"):
        read_roberta(str(tmp_path), CONFIG)


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: str) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(InputError, match=r"roberta-base.*no network.*--text-init random"):
        read_roberta("roberta-base", CONFIG)
