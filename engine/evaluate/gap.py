"""The modality gap of a run, checkpoint by checkpoint: how far apart both modalities lie (paper, Fig. 6)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...models.model_directory import MODEL_FILE
from ...models.tensor_shapes import load_into
from ...models.weights import load_tensors
from ..checkpoint import checkpoints, load_state
from ..embedding_figures import modality_gap
from ..inference import BATCH_SIZE, Cacophony, load
from .datasets.corpus import CaptionCorpus
from .embedding import embed_clips, embed_texts
from .store import Store


@dataclass(frozen=True)
class Gap:
    """A model's gap, and the unit embeddings of clips ``[N, P]`` and captions ``[M, P]`` that it is between."""

    gap: float
    audio_embeddings: np.ndarray
    text_embeddings: np.ndarray
    first_caption: np.ndarray
    """int64 ``[N]``: the row of each clip's first caption."""

    @property
    def paired_text(self) -> np.ndarray:
        """Embeddings of each clip's first caption, ``[N, P]``."""
        return self.text_embeddings[self.first_caption]


def measure_gap(model: Cacophony, corpus: CaptionCorpus, store: Store | None = None, *, progress: bool = False) -> Gap:
    """Return the gap of ``model`` over all clips and captions of ``corpus``; ``store`` keeps the embeddings."""
    store = store or Store()
    captions = [caption for texts in corpus.captions for caption in texts]
    first = np.cumsum([0, *(len(texts) for texts in corpus.captions[:-1])])
    audio = embed_clips(model, corpus.clips, store, progress=progress)
    text = embed_texts(model, captions, store)
    return Gap(modality_gap(audio, text), audio, text, first)


def evaluate_gap(
    run: Path,
    corpus: CaptionCorpus,
    *,
    store: Store | None = None,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Iterator[tuple[int, Gap]]:
    """Yield step and gap of every checkpoint of ``run``, oldest first, over all clips and captions of ``corpus``.

    Full clips. ``store`` keeps the embeddings of each checkpoint. Raises InputError where ``run`` is no stage-2 run
    with checkpoints.
    """
    model = load(run, device=device, batch_size=batch_size)
    found = checkpoints(run)
    if not found:
        raise InputError(f"{run}: holds no checkpoints; expected a stage-2 run (cacophony train contrastive)")
    for checkpoint in found:
        file = checkpoint / MODEL_FILE
        load_into(model.model, load_tensors(file), file)
        yield _step(checkpoint), measure_gap(model, corpus, (store or Store()).of_weights(run, file), progress=progress)


def _step(checkpoint: Path) -> int:
    step = load_state(checkpoint).get("step")
    if not isinstance(step, int):
        raise InputError(f"{checkpoint}: its state has no step; the checkpoint is damaged")
    return step
