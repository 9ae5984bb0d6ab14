"""The modality gap of a run, checkpoint by checkpoint: how far apart both modalities lie (paper, Fig. 6)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from ...data.shards import Shards
from ...errors import InputError
from ...models.model_directory import MODEL_FILE
from ...models.tensor_shapes import load_into
from ...models.weights import load_tensors
from ..checkpoint import checkpoints, load_state
from ..embedding_figures import modality_gap
from ..inference import Cacophony, load

_CLIPS_AT_ONCE = 64


@dataclass(frozen=True)
class CheckpointGap:
    """A checkpoint's gap, and the unit embeddings of clips ``[N, P]`` and captions ``[M, P]`` that it is between."""

    step: int
    gap: float
    audio_embeddings: np.ndarray
    text_embeddings: np.ndarray
    first_caption: np.ndarray
    """int64 ``[N]``: the row of each clip's first caption."""

    @property
    def paired_text(self) -> np.ndarray:
        """Embeddings of each clip's first caption, ``[N, P]``."""
        return self.text_embeddings[self.first_caption]


def evaluate_gap(run: Path, data: Path, *, device: str = "auto", progress: bool = False) -> Iterator[CheckpointGap]:
    """Yield the gap of every checkpoint of ``run``, oldest first, over all clips and captions of the shards ``data``.

    Full clips; a clip's human captions count, synthetic ones where it has no other. Raises InputError where ``run`` is
    no stage-2 run with checkpoints, or a clip has no caption.
    """
    model = load(run, device=device)
    found = checkpoints(run)
    if not found:
        raise InputError(f"{run}: holds no checkpoints; expected a stage-2 run (cacophony train contrastive)")
    for checkpoint in found:
        file = checkpoint / MODEL_FILE
        load_into(model.model, load_tensors(file), file)
        yield _checkpoint_gap(model, data, _step(checkpoint), progress)


def _step(checkpoint: Path) -> int:
    step = load_state(checkpoint).get("step")
    if not isinstance(step, int):
        raise InputError(f"{checkpoint}: its state has no step; the checkpoint is damaged")
    return step


def _checkpoint_gap(model: Cacophony, data: Path, step: int, progress: bool) -> CheckpointGap:
    captions: list[str] = []
    first_caption: list[int] = []
    audio: list[np.ndarray] = []
    with Shards.open(data) as shards:
        if not shards.has_captions:
            raise InputError(f"{data}: the shards have no captions; pack with --captions captions.csv")
        starts = range(0, len(shards), _CLIPS_AT_ONCE)
        for start in track(starts, f"embedding audio, step {step}", disable=not progress, transient=True):
            clips = [shards.clip(i) for i in range(start, min(start + _CLIPS_AT_ONCE, len(shards)))]
            audio.append(model.embed_audio([shards.read(clip.index) for clip in clips]))
            for clip in clips:
                first_caption.append(len(captions))
                captions.extend(clip.captions or clip.synthetic_captions)
    embedded, text = np.concatenate(audio), model.embed_text(captions)
    return CheckpointGap(step, modality_gap(embedded, text), embedded, text, np.array(first_caption))
