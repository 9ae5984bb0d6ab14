"""Shared by the tests of evaluations: the smallest model there is, never trained, and 200 clips in each layout."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cacophony.data.tokens import CaptionTokenizer
from cacophony.engine.evaluate.datasets import esc50, tut2017, urbansound8k
from cacophony.engine.inference import Cacophony, load
from cacophony.models.audio_text import AudioText
from cacophony.models.config import AudioTextConfig, TextConfig, TransformerConfig
from cacophony.models.layers import init_weights
from cacophony.models.model_directory import write_model

from .corpora import CAPTIONED, LABELLED, WORDS, Made

CLIPS = 200


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-2 model with random weights, as `cacophony convert` would write it."""
    directory = tmp_path_factory.mktemp("model")
    sentences = [f"This is a sound of {name}" for name in (*esc50.CLASSES, *tut2017.CLASSES, *urbansound8k.CLASSES)]
    tokenizer = CaptionTokenizer.train([*sentences, *WORDS], 500)
    text = TextConfig(width=16, layers=1, heads=2, mlp_width=32, vocab_size=500, max_positions=64, dropout=0.0)
    audio = TransformerConfig(width=16, layers=1, heads=2, mlp_width=32)
    config = AudioTextConfig(audio=audio, text=text, caption_layers=1, pool_heads=2, projection_width=16)
    network = AudioText(config)
    init_weights(network, 0)
    with torch.no_grad():
        # As initialised, all texts have nearly one embedding, and rounding would decide who is nearest.
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    write_model(directory, config, network.state_dict())
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="session")
def model(model_directory: Path) -> Cacophony:
    return load(model_directory, device="cpu")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Return the 200-clip corpus of a dataset; made once, not to be changed."""
    done: dict[str, Made] = {}

    def of(dataset: str) -> Made:
        if dataset not in done:
            make = {**CAPTIONED, **LABELLED}[dataset]
            done[dataset] = make(tmp_path_factory.mktemp(dataset), CLIPS)
        return done[dataset]

    return of
