"""Audio-text retrieval of a run on packed shards."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from ...data.shards import Shards
from ...errors import InputError
from ..inference import Cacophony
from .retrieval_metrics import RetrievalMetrics, retrieval_metrics

_CLIPS_AT_ONCE = 64


@dataclass(frozen=True)
class Retrieval:
    """Metrics and what they were computed from: embeddings ``[N, P]`` and ``[M, P]``, and each caption's clip."""

    metrics: RetrievalMetrics
    audio_embeddings: np.ndarray
    text_embeddings: np.ndarray
    captions: list[str]
    clip_of_caption: np.ndarray
    sources: list[str]


def evaluate_retrieval(model: Cacophony, data: Path, *, progress: bool = True) -> Retrieval:
    """Rank all clips of the shards in ``data`` for every caption, and all captions for every clip.

    Full clips, no random crop. A clip's human captions count; synthetic ones only where it has no other. Raises
    InputError where a clip has no caption.
    """
    captions: list[str] = []
    clip_of_caption: list[int] = []
    sources: list[str] = []
    audio_parts: list[np.ndarray] = []
    with Shards.open(data) as shards:
        if not shards.has_captions:
            raise InputError(f"{data}: the shards have no captions; pack with --captions captions.csv")
        starts = range(0, len(shards), _CLIPS_AT_ONCE)
        for start in track(starts, "embedding audio", disable=not progress, transient=True):
            clips = [shards.clip(i) for i in range(start, min(start + _CLIPS_AT_ONCE, len(shards)))]
            audio_parts.append(model.embed_audio([shards.read(clip.index) for clip in clips]))
            for clip in clips:
                texts = clip.captions or clip.synthetic_captions
                captions.extend(texts)
                clip_of_caption.extend([clip.index] * len(texts))
                sources.append(clip.source)
    audio, text = np.concatenate(audio_parts), model.embed_text(captions)
    owners = np.asarray(clip_of_caption)
    metrics = retrieval_metrics(audio, text, captions, owners)
    return Retrieval(metrics, audio, text, captions, owners, sources)
