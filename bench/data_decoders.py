"""The decoders that the data bench compares."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from ..data.audio import decode_flac_by_soundfile
from ..data.dali_decoder import DaliDecoder
from ..data.flac import Stretch, flac_library, native_decoder
from ..data.loader import BatchDecoder
from ..errors import InputError

DecoderName = Literal["native", "soundfile", "dali"]


def make_decoder(name: DecoderName, pool: ThreadPoolExecutor, threads: int) -> BatchDecoder:
    """Make a decoder that works on a pool of so many threads, or, DALI, on its own.

    Raises InputError where the native library was not built or DALI is not here.
    """
    if name == "dali":
        return DaliDecoder(threads)
    if name == "soundfile":
        return SoundfileDecoder(pool)
    native = native_decoder(pool, threads)
    if native is None:
        raise InputError(flac_library().about)
    return native


class SoundfileDecoder:
    """A BatchDecoder: libsndfile in threads, which is what the loader does where the native library was not built."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def accepts(self, stretch: Stretch) -> bool:
        """Whether it is one for this decoder: all are."""
        return True

    def decode(self, stretches: Sequence[Stretch], packed: np.ndarray, places: Sequence[int]) -> list[bool]:
        """Decode stretches one by one, and copy them to their places; damage is an InputError."""
        waves = self._pool.map(lambda s: decode_flac_by_soundfile(s.flac, s.start, s.frames), stretches)
        for wave, place in zip(waves, places, strict=True):
            packed[place : place + len(wave)] = wave
        return [True] * len(stretches)

    def close(self) -> None:
        """Nothing is held."""
