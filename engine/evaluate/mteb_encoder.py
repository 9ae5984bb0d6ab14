"""The model as mteb's audio-text tasks (MAEB) take it: an encoder of batches of text, audio, or both.

>>> import mteb
>>> from cacophony.engine.evaluate.mteb_encoder import CacophonyEncoder
>>> mteb.evaluate(CacophonyEncoder("runs/caco"), mteb.get_tasks(tasks=["ClothoT2ARetrieval"]))

mteb is the extra `evaluate`'s (its own tasks also want `mteb[audio]`, to decode); the encoder encodes without it.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from ...data.audio import SAMPLE_RATE
from ...errors import InputError
from ...extras import require
from ..inference import load

Array = np.ndarray | Tensor

_ORGANISATION = "cacophony"


class CacophonyEncoder:
    """mteb's ``EncoderProtocol``: unit embeddings, compared by their cosine."""

    def __init__(
        self, model_name: str | Path, revision: str | None = None, device: str | None = None, **_: Any
    ) -> None:
        """Load the stage-2 model directory ``model_name``; ``revision`` names its weights in mteb's results.

        Raises InputError where it is none.
        """
        self.path = Path(model_name)
        self.revision = revision
        self.model = load(self.path, device=device or "auto")

    def encode(self, inputs: Iterable[Mapping[str, Any]], **_: Any) -> np.ndarray:
        """Return unit embeddings float32 ``[N, P]`` of the items of ``inputs``, batch after batch.

        A batch has ``text`` (strings), or ``audio`` (items with ``array`` ``[n]`` or ``[channels, n]`` and
        ``sampling_rate``; resampled, no clip is cropped), or both, whose embeddings are then added and normalised. What
        mteb says of the task (``task_metadata``, ``prompt_type``, …) changes nothing. Raises InputError for a batch
        with neither.
        """
        parts = [self._encode_batch(batch) for batch in inputs]
        return np.concatenate(parts) if parts else self.model.embed_text([])

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Tensor:
        """Return the cosines ``[N, M]`` of ``[N, P]`` and ``[M, P]``."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Tensor:
        """Return the cosines ``[N]`` of the rows of ``[N, P]`` with their partners."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(dim=-1)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """What mteb writes into its results; raises InputError where mteb is not installed."""
        model_meta = require("mteb.models", "mteb", "the model's card for mteb", extra="evaluate").ModelMeta
        network = self.model.model
        numbers = sum(parameter.numel() for parameter in network.parameters())
        return model_meta(
            loader=type(self),
            name=f"{_ORGANISATION}/{self.path.absolute().name}",
            revision=self.revision,
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=numbers,
            memory_usage_mb=4 * numbers / 2**20,
            max_tokens=self.model.max_text_tokens,
            embed_dim=network.config.projection_width,
            license=None,
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["audio", "text"],
        )

    def _encode_batch(self, batch: Mapping[str, Any]) -> np.ndarray:
        parts = []
        if "text" in batch:
            parts.append(self.model.embed_text(list(batch["text"])))
        if "audio" in batch:
            parts.append(self.model.embed_audio([_wave(item) for item in batch["audio"]]))
        if not parts:
            raise InputError(f"a batch has {', '.join(batch) or 'nothing'}; expected text, audio or both")
        total = np.sum(parts, axis=0)
        return total if len(parts) == 1 else total / np.linalg.norm(total, axis=1, keepdims=True).clip(1e-12)


def _wave(item: Any) -> np.ndarray:
    """Make an item's samples mono and 16 kHz, as packing does: mean over channels, then soxr."""
    samples, rate = np.asarray(item["array"], np.float32), int(item["sampling_rate"])
    mono = samples.mean(axis=0) if samples.ndim > 1 else samples
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")


def _rows(embeddings: Array) -> Tensor:
    rows = torch.as_tensor(embeddings).float()
    rows = rows[None] if rows.dim() == 1 else rows
    return torch.nn.functional.normalize(rows, dim=-1)
