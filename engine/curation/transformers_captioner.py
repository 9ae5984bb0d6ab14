"""Models of transformers that turn audio into text, as captioners: by name or path, of two families.

- encoder and decoder (`AutoModelForSpeechSeq2Seq`: Whisper and captioners made of it, Speech2Text, …): audio into the
  encoder, the prompt as the beginning of the text;
- language models that hear (`AutoModelForMultimodalLM`: Qwen2-Audio, Voxtral, …): audio and prompt as a user's turn of
  a chat.

Weights have to be safetensors, and code that a model brings along is not run.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import numpy as np
import soxr
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.utils import GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING

from ...data.audio import SAMPLE_RATE
from ...data.curate.audio_batches import Wave
from ...errors import InputError
from ...kernels import counter_rng
from ..distributed import choose_device
from .model_captioner import CaptionDecoding

_WHISPER_PROMPT = ("<|en|>", "<|transcribe|>", "<|notimestamps|>")
_generate = cast("Any", GenerationMixin).generate
_QUESTION = "Describe in one sentence what is to be heard."


class KeyedSampling(LogitsProcessor):
    """Makes of the likeliest token a draw from softmax(scores / temperature).

    Adding Gumbel noise to all scores and taking the largest is such a draw; the noise of a row is a function of the
    row's seed and the number of the new token, so a caption depends on no other clip and on no generator's state.
    One is for one batch.
    """

    def __init__(self, seeds: Tensor, temperature: float) -> None:
        """`seeds`: int64 `[B]`."""
        self._seeds = seeds
        self._temperature = temperature
        self._prompt_length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, V]` with the noise of the next token."""
        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1]
        root = torch.zeros((), dtype=torch.int64, device=scores.device)
        key = counter_rng.fold(counter_rng.fold(root, self._seeds), input_ids.shape[1] - self._prompt_length)
        words = counter_rng.random_bits(key[:, None], torch.arange(scores.shape[1], device=scores.device))
        uniform = (words.double() + 0.5) / 2**32
        return scores.double() / self._temperature - torch.log(-torch.log(uniform))


class TransformersCaptioner(ABC):
    """Captions of one model; a family says what the model takes and where in its tokens the caption is."""

    def __init__(
        self, model: Any, processor: Any, decoding: CaptionDecoding, prompt: str, max_tokens: int, batch_size: int
    ) -> None:
        self._model = model
        self._processor = processor
        self._decoding = decoding
        self._prompt = prompt
        self._batch_size = batch_size
        self._config = deepcopy(model.generation_config)
        beams = decoding.beams if decoding.method == "beam" else 1
        self._config.update(do_sample=False, num_beams=beams, num_return_sequences=1, forced_decoder_ids=None)
        self._config.update(max_new_tokens=max_tokens, max_length=None)
        self._config.update(temperature=None, top_k=None, top_p=None, return_dict_in_generate=False)

    @torch.inference_mode()
    def __call__(self, waves: Sequence[Wave], seeds: Sequence[int]) -> list[str]:
        """A caption for each 16 kHz mono wave; what the model's own extractor cuts off is not heard."""
        texts: list[str] = []
        for first in range(0, len(waves), self._batch_size):
            rows = slice(first, first + self._batch_size)
            inputs = {name: self._on_device(value) for name, value in self._inputs(waves[rows]).items()}
            keys = torch.tensor(seeds[rows], dtype=torch.int64, device=self._model.device)
            draws = [KeyedSampling(keys, self._decoding.temperature)] if self._decoding.method == "sample" else []
            # Not the model's own generate: Whisper's cuts long audio, decodes again where it is unsure, and forces
            # tokens of its own.
            tokens = _generate(
                self._model,
                **inputs,
                generation_config=self._config,
                logits_processor=LogitsProcessorList(draws),
            )
            texts += self._decode(tokens, inputs)
        return texts

    def _on_device(self, value: Tensor) -> Tensor:
        return value.to(self._model.device, self._model.dtype if value.is_floating_point() else None)

    @abstractmethod
    def _inputs(self, waves: Sequence[Wave]) -> Mapping[str, Tensor]:
        """What `generate` takes, for clips at 16 kHz."""

    @abstractmethod
    def _decode(self, tokens: Tensor, inputs: Mapping[str, Tensor]) -> list[str]:
        """The captions in what `generate` returned for `inputs`, without the prompt."""

    def _at_its_rate(self, waves: Sequence[Wave]) -> tuple[list[Wave], int]:
        rate = int(self._processor.feature_extractor.sampling_rate)
        if rate == SAMPLE_RATE:
            return list(waves), rate
        return [soxr.resample(wave, SAMPLE_RATE, rate, quality="HQ").astype(np.float32) for wave in waves], rate


class Seq2SeqCaptioner(TransformersCaptioner):
    """An encoder and a decoder whose text begins with the prompt."""

    def __init__(
        self, model: Any, processor: Any, decoding: CaptionDecoding, prompt: str, max_tokens: int, batch_size: int
    ) -> None:
        super().__init__(model, processor, decoding, prompt, max_tokens, batch_size)
        tokenizer = processor.tokenizer
        start = self._config.decoder_start_token_id
        start = model.config.decoder_start_token_id if start is None else start
        known = tokenizer.get_vocab() if model.config.model_type == "whisper" else {}
        own = [known[token] for token in _WHISPER_PROMPT if token in known]
        self._begin = [start, *own, *tokenizer(prompt, add_special_tokens=False).input_ids] if prompt else [start, *own]

    def _inputs(self, waves: Sequence[Wave]) -> Mapping[str, Tensor]:
        at_its_rate, rate = self._at_its_rate(waves)
        # Whisper's encoder takes exactly the 30 seconds to which its extractor pads by default.
        padding = "max_length" if self._model.config.model_type == "whisper" else True
        features = self._processor.feature_extractor(
            at_its_rate, sampling_rate=rate, return_tensors="pt", padding=padding, return_attention_mask=True
        )
        begin = torch.tensor([self._begin] * len(waves))
        return {**features, "decoder_input_ids": begin}

    def _decode(self, tokens: Tensor, inputs: Mapping[str, Tensor]) -> list[str]:
        del inputs
        return self._processor.tokenizer.batch_decode(tokens[:, len(self._begin) :], skip_special_tokens=True)


class ChatCaptioner(TransformersCaptioner):
    """A language model that is asked about a clip in a chat."""

    def _inputs(self, waves: Sequence[Wave]) -> Mapping[str, Tensor]:
        at_its_rate, rate = self._at_its_rate(waves)
        asked = {"type": "text", "text": self._prompt or _QUESTION}
        chat = [[{"role": "user", "content": [{"type": "audio", "audio": "clip"}, asked]}] for _ in waves]
        texts = [self._processor.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in chat]
        # Continued on the right, so padded on the left.
        return self._processor(
            text=texts,
            audio=at_its_rate,
            return_tensors="pt",
            text_kwargs={"padding": True, "padding_side": "left"},
            audio_kwargs={"sampling_rate": rate},
        )

    def _decode(self, tokens: Tensor, inputs: Mapping[str, Tensor]) -> list[str]:
        return self._processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def make_transformers_captioner(
    name: str, decoding: CaptionDecoding, prompt: str, max_tokens: int, device: str, batch_size: int
) -> TransformersCaptioner:
    """Load a model by name or path in the process that uses it.

    Raises `InputError` where it cannot be loaded, or does not turn audio into text.
    """
    try:
        family, model, processor = _load(name)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        why = " ".join(str(error).split())
        raise InputError(
            f"{name}: cannot be loaded by transformers ({why:.300}); check the name and its files"
        ) from None
    if not hasattr(processor, "feature_extractor") or not hasattr(processor, "tokenizer"):
        raise InputError(f"{name}: its processor takes no audio, or has no tokenizer; expected both")
    model = model.eval().requires_grad_(False).to(choose_device(device))
    return family(model, processor, decoding, prompt, max_tokens, batch_size)


def _load(name: str) -> tuple[type[TransformersCaptioner], Any, Any]:
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        family, loader = Seq2SeqCaptioner, AutoModelForSpeechSeq2Seq
    elif type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        family, loader = ChatCaptioner, AutoModelForMultimodalLM
    else:
        raise InputError(
            f"{name}: a {config.model_type} does not turn audio into text; expected a stage-2 model of this project, "
            "or one that AutoModelForSpeechSeq2Seq or AutoModelForMultimodalLM of transformers loads"
        )
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    model = loader.from_pretrained(name, config=config, trust_remote_code=False, use_safetensors=True)
    return family, model, processor
