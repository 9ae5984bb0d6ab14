"""What the data bench is asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..data.pack import MAX_SECONDS, MIN_SECONDS
from ..errors import InputError
from .providers import check_names

DataProvider = Literal["native", "soundfile", "dali", "torch", "torch + mel"]
PROVIDERS: tuple[DataProvider, ...] = ("native", "soundfile", "dali", "torch", "torch + mel")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is measured."""

    data: str | None = None
    """Packed shards; a synthetic corpus of so many ``clips`` of ``clip_seconds`` is made where none are named."""
    clips: int = 64
    """Clips that the stages and the DataLoader are given, the first of the shards."""
    clip_seconds: float = 10.0
    crop_seconds: float = 15.0
    """Longer clips are cropped to this."""
    batch_size: int = 16
    workers: int = 2
    """Threads, of DALI too, or processes of the DataLoader."""
    seconds: float = 3.0
    """Time of a loader; of a stage a quarter of it."""
    providers: Sequence[DataProvider] = PROVIDERS
    device: str = "cpu"

    def check(self) -> None:
        """Raise InputError where a number is outside its range or a name unknown."""
        for name in ("clips", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected at least 1")
        if self.batch_size > self.clips:
            raise InputError(f"--batch-size is {self.batch_size}; expected at most the {self.clips} --clips")
        if not MIN_SECONDS <= self.clip_seconds <= MAX_SECONDS:
            raise InputError(f"--clip-seconds is {self.clip_seconds}; expected {MIN_SECONDS:g} to {MAX_SECONDS:g}")
        for name in ("crop_seconds", "seconds"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected more than 0")
        check_names("provider", self.providers, PROVIDERS)
