"""What `cacophony curate caption` needs of a model."""

from collections.abc import Sequence
from typing import Protocol

from .audio_batches import Wave


class Captioner(Protocol):
    """A model that says what is to be heard in a clip."""

    def __call__(self, waves: Sequence[Wave], seeds: Sequence[int]) -> list[str]:
        """A caption for each 16 kHz mono wave `[n]`; what is drawn for a clip depends on its seed alone."""
        ...
