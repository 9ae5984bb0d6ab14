"""Initial weights: complete, reproducible, with the authors' distributions."""

import math

import pytest
import torch
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText
from cacophony.models.config import (
    AUDIO_MAE_SIZES,
    AUDIO_TEXT_SIZES,
    AudioMAEConfig,
    AudioTextConfig,
    TextConfig,
    TransformerConfig,
)
from cacophony.models.layers import LayerNorm, Linear, Table, init_weights
from torch import nn

STACK = TransformerConfig(width=8, layers=2, heads=2, mlp_width=12)
TEXT = TextConfig(width=8, layers=2, heads=2, mlp_width=12, vocab_size=20, max_positions=10)
MODELS: dict[str, nn.Module] = {
    "mae small": AudioMAE(AudioMAEConfig(encoder=STACK, decoder=STACK)),
    "text small": AudioText(AudioTextConfig(audio=STACK, text=TEXT, pool_heads=2, projection_width=6)),
    "mae demo": AudioMAE(AUDIO_MAE_SIZES["demo"]),
    "text demo": AudioText(AUDIO_TEXT_SIZES["demo"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_its_value_from_the_seed(name: str) -> None:
    model = MODELS[name]
    init_weights(model, 5)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    assert all(bool(value.isfinite().all()) for value in first.values())
    torch.rand(3)
    init_weights(model, 5)
    assert all(torch.equal(value, first[key]) for key, value in model.state_dict().items())
    init_weights(model, 6)
    drawn = {key for key, value in model.state_dict().items() if not torch.equal(value, first[key])}
    constant = {key for key in first if key.endswith("bias") or "norm" in key or key.startswith("logit_scale")}
    assert drawn == set(first) - constant


@pytest.mark.parametrize("size", ["paper", "ablation"])
@pytest.mark.parametrize("kind", ["mae", "text"])
def test_no_parameter_is_forgotten_at_any_size(size: str, kind: str) -> None:
    """The large sizes on the meta device: every parameter belongs to a module that resets its own."""
    with torch.device("meta"):
        model = AudioMAE(AUDIO_MAE_SIZES[size]) if kind == "mae" else AudioText(AUDIO_TEXT_SIZES[size])
    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            assert hasattr(module, "reset"), name


def test_a_forgotten_parameter_is_nan() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = Table(3)
            self.loose = nn.Parameter(torch.zeros(2))

    model = Forgetful()
    init_weights(model, 0)
    assert bool(model.loose.isnan().all())
    assert bool(model.table.weight.isfinite().all())


def test_linear_starts_as_a_truncated_lecun_normal() -> None:
    layer = Linear(400, 500)
    init_weights(layer, 0)
    weight, std = layer.weight.detach(), 1 / math.sqrt(400)
    # 200000 values: the standard error of the standard deviation is 0.0016 of it.
    assert float(weight.std()) == pytest.approx(std, rel=0.01)
    assert abs(float(weight.mean())) < 6 * std / 200_000**0.5
    bound = 2 * std / 0.87962566103423978  # flax's truncation, at two standard deviations of the untruncated normal
    assert 0.99 * bound < float(weight.abs().max()) <= bound * (1 + 1e-6)
    assert not bool(layer.bias.any())


@pytest.mark.parametrize("std", [0.02, 0.01])
def test_linear_of_a_given_std_is_a_normal(std: float) -> None:
    layer = Linear(400, 500, std)
    init_weights(layer, 0)
    assert float(layer.weight.std().detach()) == pytest.approx(std, rel=0.01)
    assert float(layer.weight.abs().max().detach()) > 3.5 * std  # not truncated
    assert not bool(layer.bias.any())


def test_tables_are_normal_and_norms_the_identity() -> None:
    table, norm = Table(500, 400), LayerNorm(30, 1e-6)
    init_weights(nn.ModuleList((table, norm)), 0)
    assert float(table.weight.std().detach()) == pytest.approx(0.02, rel=0.01)
    assert norm.weight.tolist() == [1.0] * 30
    assert norm.bias.tolist() == [0.0] * 30


def test_distributions_of_the_audio_text_model() -> None:
    """RoBERTa's kernels, tables and queries N(0, 0.02²), the head N(0, 0.01²), the others lecun."""
    stack = TransformerConfig(width=128, layers=1, heads=2, mlp_width=256)
    text = TextConfig(width=128, layers=1, heads=2, mlp_width=256, vocab_size=300, max_positions=64)
    model = AudioText(AudioTextConfig(audio=stack, text=text, caption_layers=1, pool_heads=2, projection_width=128))
    init_weights(model, 0)
    lecun = {
        "audio_encoder.patch": 256,
        "audio_encoder.blocks.0.attention.qkv": 128,
        "audio_encoder.blocks.0.attention.out": 128,
        "audio_encoder.blocks.0.mlp_in": 128,
        "audio_encoder.blocks.0.mlp_out": 256,
        "audio_pooler.key": 128,
        "audio_pooler.value": 128,
        "audio_pooler.projection": 128,
        "text_pooler.projection": 128,
    }
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            expected = 1 / math.sqrt(lecun[name]) if name in lecun else 0.01 if name.endswith("head") else 0.02
        elif isinstance(module, Table):
            expected = 0.02
        else:
            continue
        weight = module.weight.detach()
        error = 6 / (2 * weight.numel()) ** 0.5  # six standard errors
        assert float(weight.square().mean().sqrt()) == pytest.approx(expected, rel=error), name
    assert float(model.logit_scale.value.detach()) == 2.0
