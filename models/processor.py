"""Waveforms and texts to the tensors that the transformers form of the model takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import BatchFeature, FeatureExtractionMixin, ProcessorMixin

from ..errors import InputError
from ..kernels.log_mel import SAMPLE_RATE
from .clip_patches import clip_patches, mono_wave
from .config import MAX_PATCHES

Wave = np.ndarray | Tensor | Sequence[float]


class CacophonyFeatureExtractor(FeatureExtractionMixin):
    """Waves to log-mel patches; of a clip longer than ``max_patches`` a fixed random subset."""

    model_input_names = ["patch_values", "patch_time", "patch_freq", "patch_mask"]  # noqa: RUF012  (transformers' own)

    def __init__(self, sampling_rate: int = SAMPLE_RATE, max_patches: int = MAX_PATCHES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sampling_rate = sampling_rate
        self.max_patches = max_patches

    def __call__(self, audio: Wave | Sequence[Wave], sampling_rate: int | None = None, **_: Any) -> BatchFeature:
        """Return ``patch_values`` float32 ``[B, L, 256]``; ``patch_time``, ``patch_freq``, ``patch_mask`` ``[B, L]``.

        ``audio`` is one mono wave or several, in [-1, 1] or int16. Raises InputError for another rate or for waves
        that are not one-dimensional.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise InputError(f"sampling_rate is {sampling_rate}; expected {self.sampling_rate} Hz, resample the audio")
        several = isinstance(audio, list | tuple) and not np.isscalar(audio[0])
        waves = [mono_wave(wave) for wave in (audio if several else [audio])]
        patches = clip_patches(waves, self.max_patches)
        positions = patches.positions
        return BatchFeature(
            {
                "patch_values": patches.values,
                "patch_time": positions.time,
                "patch_freq": positions.freq,
                "patch_mask": patches.layout.valid,
            }
        )


class CacophonyProcessor(ProcessorMixin):
    """The feature extractor for audio and a RoBERTa tokenizer for text."""

    def __init__(self, feature_extractor: CacophonyFeatureExtractor, tokenizer: Any) -> None:
        super().__init__(feature_extractor, tokenizer)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  (no images, no videos)
        self,
        text: str | Sequence[str] | None = None,
        audio: Wave | Sequence[Wave] | None = None,
        sampling_rate: int | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Return tensors of ``audio`` (see the feature extractor) and of ``text`` (``input_ids``, ``attention_mask``).

        A text longer than the tokenizer's ``model_max_length`` loses its end. Raises InputError where neither is
        given.
        """
        if text is None and audio is None:
            raise InputError("the processor got neither text nor audio; expected at least one")
        features = BatchFeature({})
        if audio is not None:
            features.update(self.feature_extractor(audio, sampling_rate))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            features.update(self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
        return features
