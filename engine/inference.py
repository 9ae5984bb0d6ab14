"""A trained model in use: embeddings of audio and text, and captions."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..data.audio import SAMPLE_RATE, read_audio
from ..data.tokens import CaptionTokenizer
from ..errors import InputError
from ..kernels.layout import Packed, Patches, pad, padded_layout
from ..kernels.log_mel import log_mel
from ..kernels.patch_mask import keep_at_most, patch_mask
from ..models.audio_text import AudioText
from ..models.generate import MAX_LENGTH, PAD, beam_search, sample
from .checkpoint import MODEL_FILE, latest_checkpoint, load_into, load_tensors
from .config import ContrastiveRunConfig
from .distributed import choose_device
from .run_directory import TOKENIZER_DIRECTORY, read_record

Audio = str | Path | np.ndarray | Tensor
Method = Literal["sample", "greedy", "beam"]

MAX_PATCHES = 1500  # 30 s of audio, the budget of the authors' evaluation on Clotho


class Cacophony:
    """An audio-text model with its tokenizer; made by :func:`load`."""

    def __init__(
        self,
        model: AudioText,
        tokenizer: CaptionTokenizer,
        max_text_tokens: int,
        device: torch.device,
        max_patches: int = MAX_PATCHES,
        batch_size: int = 16,
    ) -> None:
        """Take a model already on ``device``; longer clips are seen through ``max_patches`` of their patches."""
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
        InputError for a file that cannot be read.
        """
        embeddings = np.zeros((len(audio), self.model.config.projection_width), np.float32)
        for rows in self._batches(len(audio)):
            _, embedding = self.model.encode_audio(self._patches([audio[i] for i in rows]))
            embeddings[rows] = embedding.float().cpu().numpy()
        return embeddings

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit embeddings float32 ``[N, P]`` of ``texts``."""
        embeddings = np.zeros((len(texts), self.model.config.projection_width), np.float32)
        for rows in self._batches(len(texts)):
            tokens = self.tokenizer.encode([texts[i] for i in rows], self.max_text_tokens)
            packed = Packed.from_lengths([len(t) for t in tokens], self.device)
            layout = padded_layout(packed)
            token_ids = pad(torch.from_numpy(np.concatenate(tokens)).long().to(self.device), packed)
            _, embedding = self.model.encode_text(torch.where(layout.mask, token_ids, PAD), layout)
            embeddings[rows] = embedding.float().cpu().numpy()
        return embeddings

    @torch.inference_mode()
    def caption(
        self,
        audio: Sequence[Audio],
        *,
        method: Method = "sample",
        temperature: float = 0.1,
        beams: int = 3,
        seed: int = 0,
    ) -> list[str]:
        """Caption ``audio`` (as in :meth:`embed_audio`).

        ``sample`` draws from softmax(logits / temperature) with ``seed``; ``greedy`` takes the likeliest token;
        ``beam`` keeps ``beams`` hypotheses.
        """
        if not 0.0 < temperature < math.inf:
            raise InputError(f"temperature is {temperature}; expected more than 0 (greedy decoding is a method)")
        if beams < 1:
            raise InputError(f"beams is {beams}; expected at least 1")
        max_length = min(MAX_LENGTH, self.model.config.text.max_positions)
        captions: list[str] = []
        for rows in self._batches(len(audio)):
            patches = self._patches([audio[i] for i in rows])
            hidden = self.model.audio_encoder(patches)
            if method == "beam":
                ids = beam_search(self.model, hidden, patches.layout, beams=beams, max_length=max_length)
            else:
                heat = 0.0 if method == "greedy" else temperature
                ids = sample(
                    self.model,
                    hidden,
                    patches.layout,
                    temperature=heat,
                    seed=seed,
                    max_length=max_length,
                )
            captions.extend(" ".join(self.tokenizer.decode(row).split()) for row in ids.tolist())
        return captions

    def _batches(self, count: int) -> Iterator[list[int]]:
        for start in range(0, count, self.batch_size):
            yield list(range(start, min(start + self.batch_size, count)))

    def _patches(self, audio: Sequence[Audio]) -> Patches:
        waves = [_wave(clip) for clip in audio]
        wave = torch.cat(waves).to(self.device)
        offsets = torch.tensor([0, *(len(w) for w in waves)]).cumsum(0)
        spectrogram = log_mel(wave, offsets)
        keep = keep_at_most(spectrogram.patch_counts, self.max_patches)
        # One key for all clips: a clip's patches must not depend on which others it is embedded with.
        same_key = torch.zeros(len(waves), dtype=torch.int64)
        frames, frame_offsets = spectrogram.frames, spectrogram.frame_offsets
        return patch_mask(frames, frame_offsets, keep, same_key, seed=0, step=0).kept


def load(path: str | Path, *, device: str = "auto", max_patches: int = MAX_PATCHES) -> Cacophony:
    """Load the newest checkpoint of a stage-2 run directory for inference.

    Raises InputError where ``path`` is no such run or is damaged.
    """
    run = Path(path)
    record = read_record(run)
    if not isinstance(record.config, ContrastiveRunConfig):
        raise InputError(f"{run}: is a stage-1 run; expected a stage-2 run (cacophony train contrastive)")
    chosen = choose_device(device)
    model = AudioText(record.config.model)
    file = latest_checkpoint(run) / MODEL_FILE
    load_into(model, load_tensors(file), file)
    tokenizer = CaptionTokenizer.load(run / TOKENIZER_DIRECTORY)
    return Cacophony(model.to(chosen), tokenizer, record.config.data.max_text_tokens, chosen, max_patches)


def _wave(audio: Audio) -> Tensor:
    if isinstance(audio, str | Path):
        return torch.from_numpy(read_audio(Path(audio)))
    wave = torch.as_tensor(audio)
    if wave.dim() != 1:
        raise InputError(f"a wave has shape {tuple(wave.shape)}; expected one dimension, {SAMPLE_RATE} Hz mono samples")
    return wave.float() / 32768.0 if wave.dtype == torch.int16 else wave.float()
