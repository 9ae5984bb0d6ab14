"""A checkpoint of this project as the captioner of `cacophony curate caption`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.curate.audio_batches import Wave
from ...errors import InputError
from ..inference import Cacophony, Method, load


@dataclass(frozen=True, kw_only=True)
class CaptionDecoding:
    """How captions are generated."""

    method: Method = "sample"
    """Draw from softmax(logits / temperature), take the likeliest token, or search with several beams."""
    temperature: float = 0.1
    """Of sampling."""
    beams: int = 3
    """Hypotheses kept by beam search."""

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; expected more than 0 (greedy decoding is a method)")
        if self.beams < 1:
            raise InputError(f"beams is {self.beams}; expected at least 1")


class ModelCaptioner:
    """Captions of a stage-2 model."""

    def __init__(self, model: Cacophony, decoding: CaptionDecoding) -> None:
        self._model = model
        self._decoding = decoding

    def __call__(self, waves: Sequence[Wave], seeds: Sequence[int]) -> list[str]:
        """A caption for each 16 kHz mono wave."""
        return self._model.caption(waves, seed=seeds, **vars(self._decoding))


def make_model_captioner(directory: Path, decoding: CaptionDecoding, device: str, batch_size: int) -> ModelCaptioner:
    """Load the model in the process that uses it; raises `InputError` where it is none of stage 2."""
    return ModelCaptioner(load(directory, device=device, batch_size=batch_size), decoding)
