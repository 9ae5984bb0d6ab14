"""Captions sampled by a T5-family cleaner, each a function of its own key: not of the batch it was made in.

A token is drawn by the Gumbel-max trick: the largest of log-probability + Gumbel noise is distributed as a draw from
the probabilities. The noise is a pure function of (key of the caption, position, token), so what a caption becomes
depends on other texts only through the rounding of the numbers behind it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import InputError
from ...extras import require

MAX_INPUT_TOKENS = 512
_WORD = 0xFFFFFFFF

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How captions are drawn."""

    variants: int = 5
    """Captions for each description."""
    temperature: float = 1.0
    """Of the distribution: lower is likelier, higher more diverse."""
    top_p: float = 0.95
    """Share of the probability that is drawn from; the tail of unlikely tokens is left out."""
    max_new_tokens: int = 64
    """Longest caption."""
    batch_tokens: int = 16_384
    """Tokens in a batch, of descriptions and of the longest captions there may be, padding counted."""
    seed: int = 0
    """Of the draws, with source and id of the clip."""

    def __post_init__(self) -> None:
        for name in ("variants", "max_new_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name.replace('_', '-')} is {getattr(self, name)}; expected 1 or more")
        if not (self.temperature > 0 and 0 < self.top_p <= 1):
            raise InputError(
                f"temperature is {self.temperature} and top-p {self.top_p}; expected more than 0, and 0 < top-p <= 1"
            )


def default_dtype(device: torch.device) -> Dtype:
    """bfloat16 on a GPU that computes in it, float32 elsewhere."""
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


class Cleaner:
    """A cleaner on a device."""

    def __init__(self, folder: Path, device: torch.device, dtype: Dtype) -> None:
        """Load a transformers directory; raises `InputError` where it is none, or not of an encoder-decoder."""
        self.device = device
        self.model, self.tokenizer = load_cleaner(str(folder))
        self.model.to(device=device, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def greedy(self, texts: Sequence[str], *, max_new_tokens: int, batch_tokens: int) -> list[str]:
        """The likeliest caption, token by token, of each text."""
        captions = [""] * len(texts)
        ids = self._encode(texts)
        for batch in _batches([len(each) for each in ids], max_new_tokens, batch_tokens):
            inputs = self._padded([ids[number] for number in batch])
            made = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
            for number, text in zip(batch, self._decode(made), strict=True):
                captions[number] = text
        return captions

    @torch.inference_mode()
    def sample(self, texts: Sequence[str], keys: Sequence[int], sampling: Sampling) -> list[list[str]]:
        """`sampling.variants` captions of each text; `keys`, 64-bit integers, one a text, decide the draws."""
        captions: list[list[str]] = [[] for _ in texts]
        ids, count = self._encode(texts), sampling.variants
        for batch in _batches([len(each) for each in ids], sampling.max_new_tokens, sampling.batch_tokens, count):
            inputs = self._padded([ids[number] for number in batch])
            # The encoder reads each text once, however many captions are drawn of it.
            states = self.model.get_encoder()(**inputs).last_hidden_state
            made = self.model.generate(
                encoder_outputs=_modeling_outputs().BaseModelOutput(states.repeat_interleave(count, dim=0)),
                attention_mask=inputs["attention_mask"].repeat_interleave(count, dim=0),
                max_new_tokens=sampling.max_new_tokens,
                do_sample=False,
                num_beams=1,
                logits_processor=self._draw([keys[number] for number in batch], sampling),
            )
            texts_made = self._decode(made)
            for place, number in enumerate(batch):
                captions[number] = texts_made[place * count : (place + 1) * count]
        return captions

    def _draw(self, keys: list[int], sampling: Sampling) -> Any:
        transformers = _transformers()
        processors = [transformers.TemperatureLogitsWarper(sampling.temperature)]
        if sampling.top_p < 1:
            processors.append(transformers.TopPLogitsWarper(sampling.top_p))
        words = torch.tensor([[key & _WORD, key >> 32 & _WORD] for key in keys], device=self.device)
        numbers = torch.arange(sampling.variants, device=self.device)
        rows = _hash(_hash(_hash(words[:, :1]) ^ words[:, 1:]) ^ numbers)  # [texts, variants]
        return transformers.LogitsProcessorList([*processors, GumbelNoise(rows.flatten())])

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return self.tokenizer(clean, truncation=True, max_length=MAX_INPUT_TOKENS)["input_ids"]

    def _padded(self, ids: list[list[int]]) -> dict[str, Tensor]:
        return padded(ids, self.tokenizer.pad_token_id, self.device)

    def _decode(self, made: Tensor) -> list[str]:
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(made, skip_special_tokens=True)]


class GumbelNoise:
    """A logits processor that adds Gumbel(0, 1) noise, float32, a pure function of (row's key, position, token)."""

    def __init__(self, keys: Tensor) -> None:
        """`keys` `[rows]`: 32-bit words in int64."""
        self._keys = keys

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` `[rows, vocabulary]` with noise; `input_ids` `[rows, position]`."""
        position = _hash(torch.full_like(self._keys, input_ids.shape[1]) ^ 0x5BF03635)
        keys = _hash(self._keys ^ position)[:, None]
        tokens = torch.arange(scores.shape[1], device=scores.device)
        words = _hash(_hash((tokens * 0x9E3779B9 + keys) & _WORD) ^ keys)
        # Never 0 or 1: 24 bits, and the middle of each interval.
        uniform = ((words >> 8).double() + 0.5) / (1 << 24)
        return scores.float() - torch.log(-torch.log(uniform)).float()


def load_cleaner(name: str) -> tuple[Any, Any]:
    """Model (float32) and tokenizer of a directory or a name on the hub.

    Weights are read from safetensors alone, no code of the directory is run. Raises `InputError` where that fails.
    """
    transformers = _transformers()
    if Path(name).is_dir():  # a download may show its progress
        transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # of many kinds, from several libraries
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: no encoder-decoder that transformers can load from safetensors ({why}); "
            "expected a directory of cacophony curate finetune, or a T5-family model"
        ) from None
    transformers.utils.logging.disable_progress_bar()  # of its own, about writing a file
    if tokenizer.pad_token_id is None or model.config.decoder_start_token_id is None:
        raise InputError(
            f"{name}: its tokenizer has no padding or its decoder no first token; expected a T5-family model"
        )
    return model, tokenizer


def padded(ids: list[list[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, int64 `[texts, longest]`."""
    longest = max(map(len, ids))
    rows = [each + [pad] * (longest - len(each)) for each in ids]
    mask = [[1] * len(each) + [0] * (longest - len(each)) for each in ids]
    return {"input_ids": torch.tensor(rows, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _batches(lengths: list[int], new_tokens: int, budget: int, copies: int = 1) -> Iterator[list[int]]:
    """Numbers of texts, the longest first, in batches whose padded tokens and captions are within `budget`."""
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    start = 0
    while start < len(order):
        each = copies * (lengths[order[start]] + new_tokens)
        size = max(1, budget // each)
        yield order[start : start + size]
        start += size


def _hash(x: Tensor) -> Tensor:
    """C. Wellons' "lowbias32" of 32-bit words in int64."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def _transformers() -> Any:
    return require("transformers", "transformers", "a cleaner", extra="curate")


def _modeling_outputs() -> Any:
    return require("transformers.modeling_outputs", "transformers", "a cleaner", extra="curate")
