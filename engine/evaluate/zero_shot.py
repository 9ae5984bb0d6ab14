"""Zero-shot classification of a run on a corpus with labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError
from ..inference import Cacophony
from .datasets.corpus import LabelCorpus
from .embedding import embed_clips, embed_texts
from .report import corpus_record
from .store import Store
from .zero_shot_metrics import ZeroShotMetrics, zero_shot_metrics

_SLOT = "{}"


@dataclass(frozen=True)
class ZeroShot:
    """Metrics and what they were computed from: embeddings of clips ``[N, P]`` and of classes ``[C, P]``."""

    corpus: LabelCorpus
    templates: tuple[str, ...]
    metrics: ZeroShotMetrics
    audio_embeddings: np.ndarray
    class_embeddings: np.ndarray

    def record(self) -> dict[str, Any]:
        """Return the metrics, the templates and the account of found and missing clips, as JSON takes them."""
        return {**corpus_record(self.corpus), "templates": list(self.templates), **self.metrics}


def evaluate_zero_shot(
    model: Cacophony,
    corpus: LabelCorpus,
    *,
    templates: Sequence[str] = (),
    store: Store | None = None,
    progress: bool = True,
) -> ZeroShot:
    """Give every clip of ``corpus`` the class whose text is nearest.

    Without ``templates`` the paper's is used; a class's embedding is the mean over several, scaled to length one.
    Raises InputError for a template without exactly one `{}`.
    """
    store = store or Store()
    chosen = tuple(templates) or (corpus.template,)
    classes = embed_classes(model, corpus.class_texts, chosen, store)
    audio = embed_clips(model, corpus.clips, store, progress=progress)
    similarity = audio.astype(np.float64) @ classes.astype(np.float64).T
    metrics = zero_shot_metrics(similarity, np.asarray(corpus.labels), corpus.classes)
    return ZeroShot(corpus, chosen, metrics, audio, classes)


def embed_classes(model: Cacophony, class_texts: Sequence[str], templates: Sequence[str], store: Store) -> np.ndarray:
    """Return unit embeddings float64 ``[C, P]``: of each class the mean over ``templates``, scaled to length one.

    Raises InputError for a template without exactly one `{}`, and where the mean vanishes.
    """
    for template in templates:
        if template.count(_SLOT) != 1:
            raise InputError(
                f"template {template!r} has {template.count(_SLOT)} places for the class; expected {_SLOT} once"
            )
    texts = [template.replace(_SLOT, text) for template in templates for text in class_texts]
    embeddings = embed_texts(model, texts, store).reshape(len(templates), len(class_texts), -1)
    mean = embeddings.astype(np.float64).mean(axis=0)
    norms = np.linalg.norm(mean, axis=1, keepdims=True)
    if norms.min() < 1e-6:
        raise InputError(
            f"the templates cancel each other out for class {class_texts[int(norms.argmin())]!r}; give fewer"
        )
    return mean / norms
