"""A checkpoint of this project as what compares clips in `cacophony curate exclude`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...data.curate.audio_batches import Wave
from ..inference import Cacophony, load


class ModelEmbedder:
    """Audio embeddings of a stage-2 model."""

    def __init__(self, model: Cacophony) -> None:
        self._model = model

    def __call__(self, waves: Sequence[Wave]) -> npt.NDArray[np.float32]:
        """Unit vectors `[N, P]` of 16 kHz mono waves."""
        return self._model.embed_audio(waves)


def make_embedder(directory: Path, device: str) -> ModelEmbedder:
    """Load the model in the process that uses it; raises `InputError` where it is none of stage 2."""
    return ModelEmbedder(load(directory, device=device))
