"""Parameter counts of the paper's size: those of the trees the released checkpoints hold.

The numbers are those of the authors' flax modules (`jax.eval_shape` of their `init`, release configuration):
AudioEncoder_0 85 259 520, AudioDecoder_0 85 850 368, text_module 125 236 992 (text encoder and pooler), decoder_module
76 460 889, audio_attention_pool 1 772 544, text_proj 590 592, logit_scale 1.
"""

import pytest
import torch
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText
from cacophony.models.config import AUDIO_MAE_SIZES, AUDIO_TEXT_SIZES
from torch import nn


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.fixture(scope="module")
def mae() -> AudioMAE:
    with torch.device("meta"):
        return AudioMAE(AUDIO_MAE_SIZES["paper"])


@pytest.fixture(scope="module")
def both() -> AudioText:
    with torch.device("meta"):
        return AudioText(AUDIO_TEXT_SIZES["paper"])


def test_audio_mae(mae: AudioMAE) -> None:
    assert count(mae.encoder) == 85_259_520
    assert count(mae.decoder) == 85_850_368
    assert count(mae) == 171_109_888


def test_audio_text(both: AudioText) -> None:
    assert count(both.audio_encoder) == 85_259_520
    assert count(both.audio_pooler) == 1_772_544
    assert count(both.text_encoder, both.text_pooler) - count(both.text_pooler.projection) == 125_236_992
    assert count(both.text_pooler.projection) == 590_592
    assert count(both.caption_decoder) == 76_460_889
    assert count(both.logit_scale) == 1
    assert count(both) == 289_320_538


def test_stage_2_can_take_stage_1s_encoder(mae: AudioMAE, both: AudioText) -> None:
    one, other = mae.encoder.state_dict(), both.audio_encoder.state_dict()
    assert {name: tensor.shape for name, tensor in one.items()} == {n: tensor.shape for n, tensor in other.items()}


def test_models_are_float32_and_hold_no_buffers(mae: AudioMAE, both: AudioText) -> None:
    for model in (mae, both):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert not list(model.buffers())
        assert len(model.state_dict()) == len(list(model.parameters()))
