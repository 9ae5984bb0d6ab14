"""A trained model in use: embeddings of audio and text, and captions."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..data.audio import SAMPLE_RATE, probe_seconds, read_audio
from ..data.tokens import TOKENIZER_FILE, CaptionTokenizer
from ..errors import InputError
from ..kernels.layout import Packed, Patches, pad, padded_layout
from ..kernels.log_mel import FREQ_PATCHES, HOP, PATCH_SIDE
from ..models.audio_text import AudioText
from ..models.clip_patches import clip_patches, mono_wave
from ..models.config import MAX_PATCHES, AudioTextConfig
from ..models.generate import MAX_LENGTH, PAD, beam_search, sample
from ..models.model_directory import read_config, read_max_text_tokens, read_model
from .distributed import choose_device

Audio = str | Path | np.ndarray | Tensor
Text = str | Sequence[int]
Method = Literal["sample", "greedy", "beam"]

BATCH_SIZE = 64
_TOKENS_AT_ONCE = 24_000
_TOKENS_AT_ONCE_ON_CPU = 2_048  # more gain nothing there: it is short clips that waste time one by one


class Cacophony:
    """An audio-text model with its tokenizer, if it has one; made by :func:`load`."""

    def __init__(
        self,
        model: AudioText,
        tokenizer: CaptionTokenizer | None,
        max_text_tokens: int,
        device: torch.device,
        max_patches: int = MAX_PATCHES,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Take a model already on ``device``; longer clips are seen through ``max_patches`` of their patches.

        At most ``batch_size`` clips or texts go through it at once, fewer where they are long. Without a ``tokenizer``
        text goes in and comes out as token ids.
        """
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_text_tokens = max_text_tokens
        self.device = device
        self.max_patches = max_patches
        self.batch_size = batch_size

    @torch.inference_mode()
    def embed_audio(self, audio: Sequence[Audio]) -> np.ndarray:
        """Return unit embeddings float32 ``[N, P]`` of ``audio``: files, or 16 kHz mono waves in [-1, 1].

        A whole clip is embedded; beyond the budget of ``max_patches`` a fixed random subset of its patches. Raises
        InputError for a file that cannot be read, for samples that are no such wave, and for one file without a list.
        """
        _check_several(audio)
        embeddings = np.zeros((len(audio), self.model.config.projection_width), np.float32)
        for rows in self._batches([_patch_count(clip, self.max_patches) for clip in audio]):
            _, embedding = self.model.encode_audio(self._patches([audio[i] for i in rows]))
            embeddings[rows] = embedding.float().cpu().numpy()
        return embeddings

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[Text]) -> np.ndarray:
        """Return unit embeddings float32 ``[N, P]`` of ``texts``: strings, or token ids from ``<s>`` to ``</s>``.

        Raises InputError for a string where there is no tokenizer, for ids outside the vocabulary, and for one string
        without a list.
        """
        _check_several(texts)
        embeddings = np.zeros((len(texts), self.model.config.projection_width), np.float32)
        all_tokens = [self._tokens(text) for text in texts]
        for rows in self._batches([len(t) for t in all_tokens]):
            tokens = [all_tokens[i] for i in rows]
            packed = Packed.from_lengths([len(t) for t in tokens], self.device)
            layout = padded_layout(packed)
            token_ids = pad(torch.from_numpy(np.concatenate(tokens)).long().to(self.device), packed)
            _, embedding = self.model.encode_text(torch.where(layout.mask, token_ids, PAD), layout)
            embeddings[rows] = embedding.float().cpu().numpy()
        return embeddings

    def caption(
        self,
        audio: Sequence[Audio],
        *,
        method: Method = "sample",
        temperature: float = 0.1,
        beams: int = 3,
        seed: int | Sequence[int] = 0,
    ) -> list[str]:
        """Caption ``audio`` (as in :meth:`embed_audio`).

        ``sample`` draws from softmax(logits / temperature) with ``seed``, one for all clips or one for each; ``greedy``
        takes the likeliest token; ``beam`` keeps ``beams`` hypotheses. Raises InputError where there is no tokenizer,
        the model has no caption decoder, or an argument is out of its range.
        """
        tokenizer = self._require_tokenizer("captions as text")
        rows = self.caption_tokens(audio, method=method, temperature=temperature, beams=beams, seed=seed)
        return [" ".join(tokenizer.decode(row).split()) for row in rows]

    @torch.inference_mode()
    def caption_tokens(
        self,
        audio: Sequence[Audio],
        *,
        method: Method = "sample",
        temperature: float = 0.1,
        beams: int = 3,
        seed: int | Sequence[int] = 0,
    ) -> list[list[int]]:
        """Caption ``audio`` as :meth:`caption` does; returns token ids, ``<s>`` first, 0 after ``</s>``."""
        _check_several(audio)
        if method not in get_args(Method):
            raise InputError(f"method is {method!r}; expected sample, greedy or beam")
        if not 0.0 < temperature < math.inf:
            raise InputError(f"temperature is {temperature}; expected more than 0 (greedy decoding is a method)")
        self.model.require_captions()
        if beams < 1:
            raise InputError(f"beams is {beams}; expected at least 1")
        heat = 0.0 if method == "greedy" else temperature
        numbers = [seed] * len(audio) if isinstance(seed, int) else list(seed)
        if len(numbers) != len(audio):
            raise InputError(f"seed has {len(numbers)} numbers for {len(audio)} clips; expected one for each, or one")
        for number in numbers:
            if not 0 <= number < 2**63:
                raise InputError(f"seed is {number}; expected 0 to 2**63 - 1")
        seeds = torch.tensor(numbers, dtype=torch.int64)
        max_length = min(MAX_LENGTH, self.model.config.text.max_positions)
        captions: list[list[int]] = [[] for _ in audio]
        for rows in self._batches([_patch_count(clip, self.max_patches) for clip in audio]):
            patches = self._patches([audio[i] for i in rows])
            hidden, layout = self.model.audio_encoder(patches), patches.layout
            if method == "beam":
                ids = beam_search(self.model, hidden, layout, beams=beams, max_length=max_length)
            else:
                own = seeds[rows].to(self.device)
                ids = sample(self.model, hidden, layout, temperature=heat, seed=own, max_length=max_length)
            for row, tokens in zip(rows, ids.tolist(), strict=True):
                captions[row] = tokens
        return captions

    def _tokens(self, text: Text) -> np.ndarray:
        if isinstance(text, str):
            return self._require_tokenizer("a text as a string").encode([text], self.max_text_tokens)[0]
        ids = np.asarray(text, np.int32)
        vocab_size, positions = self.model.config.text.vocab_size, self.model.config.text.max_positions
        if ids.ndim != 1 or not 1 <= len(ids) <= positions or ids.min() < 0 or ids.max() >= vocab_size:
            raise InputError(
                f"token ids {str(text)[:60]}: expected a list of 1 to {positions} integers from 0 to {vocab_size - 1}"
            )
        return ids

    def _require_tokenizer(self, what: str) -> CaptionTokenizer:
        if self.tokenizer is None:
            raise InputError(
                f"the model has no tokenizer, which {what} needs; convert it with --tokenizer DIR, or use token ids"
            )
        return self.tokenizer

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of each batch, those of like length together: what is shorter than the longest is padded to it."""
        slots = _TOKENS_AT_ONCE_ON_CPU if self.device.type == "cpu" else _TOKENS_AT_ONCE
        batch: list[int] = []
        for row in np.argsort(lengths, kind="stable").tolist():
            if batch and (len(batch) == self.batch_size or (len(batch) + 1) * lengths[row] > slots):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _patches(self, audio: Sequence[Audio]) -> Patches:
        return clip_patches([_wave(clip) for clip in audio], self.max_patches, self.device)


def load(
    path: str | Path, *, device: str = "auto", max_patches: int = MAX_PATCHES, batch_size: int = BATCH_SIZE
) -> Cacophony:
    """Load an audio-text model for inference from a model directory: a stage-2 run, or a converted checkpoint.

    It sees at most ``batch_size`` clips or texts at once. Raises InputError where ``path`` is no such directory or is
    damaged.
    """
    directory = Path(path)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected at least 1")
    if not isinstance(read_config(directory), AudioTextConfig):
        raise InputError(f"{directory}: holds a stage-1 model; expected stage 2 (cacophony train contrastive)")
    chosen = choose_device(device)
    model = read_model(directory)
    assert isinstance(model, AudioText)
    tokenizer = CaptionTokenizer.load(directory) if (directory / TOKENIZER_FILE).is_file() else None
    max_text_tokens = min(read_max_text_tokens(directory), model.config.text.max_positions)
    return Cacophony(model.to(chosen), tokenizer, max_text_tokens, chosen, max_patches, batch_size)


def _check_several(items: object) -> None:
    # A string is a sequence too: of its letters, each of which would be a text.
    if isinstance(items, str | Path):
        raise InputError(f"{str(items)[:200]!r} is one file or text; expected a list of them: put it in brackets")


def _patch_count(audio: Audio, max_patches: int) -> int:
    """About how many patches of a clip are seen, by the header of a file; the most where it declares no length."""
    if isinstance(audio, str | Path):
        samples = probe_seconds(Path(audio)) * SAMPLE_RATE
    else:
        samples = audio.shape[0] if isinstance(audio, np.ndarray | Tensor) and audio.ndim else 0
    return int(min(max_patches, samples // (PATCH_SIDE * HOP) * FREQ_PATCHES))


def _wave(audio: Audio) -> Tensor:
    return torch.from_numpy(read_audio(Path(audio))) if isinstance(audio, str | Path) else mono_wave(audio)
