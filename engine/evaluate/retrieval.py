"""Audio-text retrieval of a run on a corpus with captions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..inference import Cacophony
from .datasets.corpus import CaptionCorpus
from .embedding import embed_clips, embed_texts
from .report import corpus_record
from .retrieval_metrics import RetrievalMetrics, retrieval_metrics
from .store import Store


@dataclass(frozen=True)
class Retrieval:
    """Metrics and what they were computed from: embeddings ``[N, P]`` and ``[M, P]``, and each caption's clip."""

    corpus: CaptionCorpus
    metrics: RetrievalMetrics
    audio_embeddings: np.ndarray
    text_embeddings: np.ndarray
    captions: list[str]
    clip_of_caption: np.ndarray

    def record(self) -> dict[str, Any]:
        """Return the metrics and the account of found and missing clips, as JSON takes them."""
        return {**corpus_record(self.corpus), **self.metrics}


def evaluate_retrieval(
    model: Cacophony, corpus: CaptionCorpus, *, store: Store | None = None, progress: bool = True
) -> Retrieval:
    """Rank all clips of ``corpus`` for every caption, and all captions for every clip.

    Full clips, no random crop; the order of the files is of no account. ``store`` keeps the embeddings.
    """
    store = store or Store()
    captions = [caption for texts in corpus.captions for caption in texts]
    owners = np.repeat(np.arange(len(corpus.clips)), [len(texts) for texts in corpus.captions])
    audio = embed_clips(model, corpus.clips, store, progress=progress)
    text = embed_texts(model, captions, store)
    metrics = retrieval_metrics(audio, text, captions, owners)
    return Retrieval(corpus, metrics, audio, text, captions, owners)
