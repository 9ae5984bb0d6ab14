"""The networks as transformers sees them; importing this module registers them with its ``Auto`` classes.

>>> import cacophony.models.hub
>>> from transformers import AutoModel, AutoProcessor
>>> model, processor = AutoModel.from_pretrained("runs/caco"), AutoProcessor.from_pretrained("runs/caco")
>>> inputs = processor(audio=[wave], text=["rain on a roof"], sampling_rate=16_000)
>>> model(**inputs).logits_per_audio
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from ..kernels.info_nce import info_nce
from ..kernels.layout import Layout, Padded, Patches, PatchPositions
from .audio_mae import AudioMAE
from .audio_text import AudioText
from .config import AudioMAEConfig, AudioTextConfig
from .config_io import from_dict
from .generate import MAX_LENGTH, sample
from .processor import CacophonyFeatureExtractor, CacophonyProcessor


class CacophonyConfig(PreTrainedConfig):
    """Sizes of the audio-text model: ``network`` holds the fields of :class:`~.config.AudioTextConfig`."""

    model_type = "cacophony"
    network: dict[str, Any] | None = None

    def sizes(self) -> AudioTextConfig:
        """Return the sizes as the network takes them (the paper's where absent); raises InputError where wrong."""
        return from_dict(AudioTextConfig, self.network or {}, "CacophonyConfig.network")


class CacophonyMAEConfig(PreTrainedConfig):
    """Sizes of the masked autoencoder: ``network`` holds the fields of :class:`~.config.AudioMAEConfig`."""

    model_type = "cacophony_mae"
    network: dict[str, Any] | None = None

    def sizes(self) -> AudioMAEConfig:
        """Return the sizes as the network takes them (the paper's where absent); raises InputError where wrong."""
        return from_dict(AudioMAEConfig, self.network or {}, "CacophonyMAEConfig.network")


class _Network(PreTrainedModel):
    """Shares the parts of a network, so that parameters are called here as they are in its files."""

    main_input_name = "patch_values"

    def _adopt(self, network: nn.Module) -> None:
        object.__setattr__(self, "network", network)  # not as a child: its parts are the children
        for name, part in network.named_children():
            self.add_module(name, part)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Give a module that a file does not fill its initial weights, without touching a parameter that it does."""
        reset = getattr(module, "reset", None)
        if reset is None:
            return
        own = list(module.parameters(recurse=False))
        loaded = [(p, p.detach().clone()) for p in own if getattr(p, "_is_hf_initialized", False)]
        reset(torch.default_generator)
        for parameter, value in loaded:
            parameter.copy_(value)


@dataclass
class CacophonyOutput(ModelOutput):
    """Unit embeddings ``[B, P]``, cosines times exp(logit_scale), and the contrastive loss where it was asked for."""

    loss: Tensor | None = None
    logits_per_audio: Tensor | None = None
    logits_per_text: Tensor | None = None
    audio_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class CacophonyModel(_Network):
    """The audio-text model; takes what :class:`~.processor.CacophonyProcessor` makes.

    ``patch_values`` ``[B, L, 256]``, ``patch_time``, ``patch_freq``, ``patch_mask`` ``[B, L]``; ``input_ids`` and
    ``attention_mask`` ``[B, L]``.
    """

    config_class = CacophonyConfig
    network: AudioText

    def __init__(self, config: CacophonyConfig) -> None:
        super().__init__(config)
        self._adopt(AudioText(config.sizes()))

    def get_audio_features(
        self, patch_values: Tensor, patch_time: Tensor, patch_freq: Tensor, patch_mask: Tensor
    ) -> Tensor:
        """Return unit embeddings ``[B, P]`` of clips."""
        return self.network.encode_audio(_patches(patch_values, patch_time, patch_freq, patch_mask))[1]

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return unit embeddings ``[B, P]`` of texts."""
        return self.network.encode_text(input_ids, _text_layout(input_ids, attention_mask))[1]

    def forward(
        self,
        patch_values: Tensor,
        patch_time: Tensor,
        patch_freq: Tensor,
        patch_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        return_loss: bool = False,
    ) -> CacophonyOutput:
        """Embed clips and texts and compare them all; ``return_loss`` takes clip i and text i for a pair (eq. 1)."""
        audio = self.get_audio_features(patch_values, patch_time, patch_freq, patch_mask)
        text = self.get_text_features(input_ids, attention_mask)
        logit_scale = self.network.logit_scale.value
        logits = logit_scale.exp() * audio @ text.T
        loss = info_nce(audio, text, logit_scale) if return_loss else None
        return CacophonyOutput(loss, logits, logits.T, audio, text)

    @torch.inference_mode()
    def generate_captions(
        self,
        patch_values: Tensor,
        patch_time: Tensor,
        patch_freq: Tensor,
        patch_mask: Tensor,
        *,
        temperature: float = 0.1,
        seed: int = 0,
        max_length: int = MAX_LENGTH,
    ) -> Tensor:
        """Return token ids ``[B, max_length]`` of a caption of each clip; ``temperature`` 0 takes the likeliest."""
        patches = _patches(patch_values, patch_time, patch_freq, patch_mask)
        hidden = self.network.audio_encoder(patches)
        limit = min(max_length, self.network.config.text.max_positions)
        return sample(self.network, hidden, patches.layout, temperature=temperature, seed=seed, max_length=limit)


class CacophonyMAEModel(_Network):
    """The masked autoencoder of stage 1."""

    config_class = CacophonyMAEConfig
    network: AudioMAE

    def __init__(self, config: CacophonyMAEConfig) -> None:
        super().__init__(config)
        self._adopt(AudioMAE(config.sizes()))

    def forward(self, patch_values: Tensor, patch_time: Tensor, patch_freq: Tensor, patch_mask: Tensor) -> Tensor:
        """Return the encoder's hidden states ``[B, L, D]`` of all given patches, none hidden from it."""
        return self.network.encoder(_patches(patch_values, patch_time, patch_freq, patch_mask))


def _patches(values: Tensor, time: Tensor, freq: Tensor, mask: Tensor) -> Patches:
    return Patches(values, PatchPositions(time, freq, Padded(mask.bool())))


def _text_layout(input_ids: Tensor, attention_mask: Tensor | None) -> Layout:
    return Padded(torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool())


AutoConfig.register(CacophonyConfig.model_type, CacophonyConfig, exist_ok=True)
AutoConfig.register(CacophonyMAEConfig.model_type, CacophonyMAEConfig, exist_ok=True)
AutoModel.register(CacophonyConfig, CacophonyModel, exist_ok=True)
AutoModel.register(CacophonyMAEConfig, CacophonyMAEModel, exist_ok=True)
for _config_class in (CacophonyConfig, CacophonyMAEConfig):
    AutoFeatureExtractor.register(_config_class, CacophonyFeatureExtractor, exist_ok=True)
AutoProcessor.register(CacophonyConfig, CacophonyProcessor, exist_ok=True)
