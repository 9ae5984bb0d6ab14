"""Sizes of the networks: what is refused, and that the message names the field to change."""

import dataclasses
from collections.abc import Callable

import pytest
from cacophony.errors import InputError
from cacophony.models.config import (
    AUDIO_MAE_SIZES,
    AUDIO_TEXT_SIZES,
    AudioTextConfig,
    TextConfig,
    TransformerConfig,
)


@pytest.mark.parametrize("name", ["width", "layers", "heads", "mlp_width"])
@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("kind", [TransformerConfig, TextConfig])
def test_sizes_below_one_are_refused(kind: Callable[..., TransformerConfig], name: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"{name} is {value}"):
        kind(**{name: value})


@pytest.mark.parametrize(("width", "heads"), [(768, 7), (10, 4), (15, 3)])
def test_heads_that_do_not_fit_the_width_are_refused(width: int, heads: int) -> None:
    with pytest.raises(InputError, match=rf"width {width}.*heads {heads}"):
        TransformerConfig(width=width, heads=heads)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, float("nan")])
def test_impossible_dropout_is_refused(dropout: float) -> None:
    with pytest.raises(InputError, match="dropout"):
        TextConfig(dropout=dropout)


@pytest.mark.parametrize("pool_heads", [0, -8, 7])
def test_pool_heads_must_divide_the_audio_width(pool_heads: int) -> None:
    with pytest.raises(InputError, match=rf"pool_heads {pool_heads}.*768"):
        AudioTextConfig(pool_heads=pool_heads)


def test_a_changed_copy_is_checked_again() -> None:
    with pytest.raises(InputError, match="heads"):
        dataclasses.replace(TransformerConfig(), heads=5)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TransformerConfig().width = 5  # pyright: ignore[reportAttributeAccessIssue]


def test_stages_of_a_size_share_their_audio_encoder() -> None:
    """Stage 2 starts from stage 1's encoder."""
    assert list(AUDIO_MAE_SIZES) == list(AUDIO_TEXT_SIZES) == ["paper", "ablation", "demo"]
    for name, mae in AUDIO_MAE_SIZES.items():
        assert AUDIO_TEXT_SIZES[name].audio == mae.encoder


def test_the_paper_size_is_that_of_the_released_checkpoints() -> None:
    mae, both = AUDIO_MAE_SIZES["paper"], AUDIO_TEXT_SIZES["paper"]
    for stack in (mae.encoder, mae.decoder, both.audio):
        assert (stack.width, stack.layers, stack.heads, stack.mlp_width) == (768, 12, 8, 3072)
    text = both.text
    assert (text.width, text.layers, text.heads, text.mlp_width) == (768, 12, 12, 3072)
    assert (text.vocab_size, text.max_positions, text.dropout) == (50_265, 514, 0.1)
    assert (both.caption_layers, both.pool_heads, both.projection_width) == (4, 8, 768)
    assert both.initial_logit_scale == 2.0
