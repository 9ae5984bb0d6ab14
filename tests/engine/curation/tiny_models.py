"""The smallest model directories of both stages, never trained."""

from pathlib import Path

import torch
from cacophony.data.tokens import CaptionTokenizer
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText
from cacophony.models.config import AudioMAEConfig, AudioTextConfig, TextConfig, TransformerConfig
from cacophony.models.layers import init_weights
from cacophony.models.model_directory import write_model

AUDIO = TransformerConfig(width=16, layers=1, heads=2, mlp_width=32)


def write_stage_2(directory: Path) -> Path:
    """A model that embeds and captions, with a tokenizer."""
    directory.mkdir()
    tokenizer = CaptionTokenizer.train(["A dog barks in the rain while a train passes under a bridge at night."], 300)
    text = TextConfig(width=16, layers=1, heads=2, mlp_width=32, vocab_size=300, max_positions=16, dropout=0.0)
    config = AudioTextConfig(audio=AUDIO, text=text, caption_layers=1, pool_heads=2, projection_width=16)
    network = AudioText(config)
    init_weights(network, 0)
    with torch.no_grad():
        for parameter in network.parameters():  # as initialised, all clips have nearly one embedding and one caption
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    write_model(directory, config, network.state_dict())
    tokenizer.save(directory)
    return directory


def write_stage_1(directory: Path) -> Path:
    """A masked autoencoder, which neither embeds nor captions."""
    directory.mkdir()
    config = AudioMAEConfig(encoder=AUDIO, decoder=AUDIO)
    write_model(directory, config, AudioMAE(config).state_dict())
    return directory
