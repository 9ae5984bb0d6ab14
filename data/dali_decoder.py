"""Decoding with NVIDIA DALI: its threads decode FLAC outside Python, many clips at a time.

Order, crops, resume and ranks stay with :mod:`.loader`, which hands the encoded members over. DALI's own reader of tars
(`fn.readers.webdataset`) keeps none of the promises: its order is its own and changes with the number of ranks,
a member that cannot be decoded costs the batch, and its checkpoint loads without a word into another batch size. The
pipeline here has neither order nor state.
"""

import importlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .dali import LoaderName, dali_problem
from .flac import Stretch, flac_decoder, flac_library, is_within
from .packing import copy_waves

_log = logging.getLogger(__name__)

# A refused member costs the clips that were decoded with it, and outputs are held until the batch is packed.
_CLIPS_PER_RUN = 64
# DALI decodes a clip from end to end. Of the loader's threads, libsndfile takes about 1.5 times as long for the same
# samples, and seeks.
_MAX_DECODED_PER_WANTED = 1.5


class DaliDecoder:
    """A :class:`.loader.BatchDecoder`; it runs on the CPU, also where there is a GPU: DALI decodes audio only there."""

    def __init__(self, threads: int) -> None:
        """Raise `InputError` where DALI cannot be imported or is too old."""
        problem = dali_problem()
        if problem:
            raise InputError(f"data.loader is dali, but {problem}; install cacophony-engine[dali], or set it to native")
        self._threads = threads
        self._pipeline: Any = self._build()

    def accepts(self, stretch: Stretch) -> bool:
        """Whether decoding the whole clip is cheaper than seeking to the crop, and it is none too long for memory."""
        whole = stretch.samples <= _MAX_DECODED_PER_WANTED * stretch.frames
        return whole and is_within(stretch.start, stretch.start + stretch.frames, stretch.samples)

    def decode(self, stretches: Sequence[Stretch], packed: np.ndarray, places: Sequence[int]) -> list[bool]:
        """Decode FLAC members (mono PCM_16) and copy the stretches to `packed` (int16 `[S]`), each to its place.

        One that DALI refuses ends its pipeline: it is built anew, and all clips of that run are False, which is logged.
        """
        right: list[bool] = []
        for first in range(0, len(stretches), _CLIPS_PER_RUN):
            run = stretches[first : first + _CLIPS_PER_RUN]
            try:
                right += self._run(run, packed, places[first : first + _CLIPS_PER_RUN])
            except RuntimeError as error:
                _log.warning("DALI refused %d clips (%s); the loader's threads decode them", len(run), _reason(error))
                right += [False] * len(run)
                self._pipeline = self._build()
        return right

    def close(self) -> None:
        """Free the pipeline; the decoder cannot be used again."""
        self._pipeline = None

    def _run(self, stretches: Sequence[Stretch], packed: np.ndarray, places: Sequence[int]) -> list[bool]:
        self._pipeline.feed_input("flac", [np.frombuffer(stretch.flac, np.uint8) for stretch in stretches])
        (decoded,) = self._pipeline.run()
        waves = [np.from_dlpack(wave) for wave in decoded]
        right = [wave.shape == (stretch.samples, 1) for wave, stretch in zip(waves, stretches, strict=True)]
        kept = [b for b, is_right in enumerate(right) if is_right]
        copy_waves([_cut(waves[b], stretches[b]) for b in kept], packed, [places[b] for b in kept])
        return right

    def _build(self) -> Any:
        dali = importlib.import_module("nvidia.dali")
        # Depth 1: a run decodes what was fed to it, nothing is in flight between two runs.
        pipeline = dali.Pipeline(
            batch_size=_CLIPS_PER_RUN, num_threads=self._threads, device_id=None, prefetch_queue_depth=1
        )
        with pipeline:
            flac = dali.fn.external_source(name="flac", ndim=1, dtype=dali.types.UINT8)
            wave, _ = dali.fn.decoders.audio(flac, dtype=dali.types.INT16, downmix=False)
            pipeline.set_outputs(wave)
        pipeline.build()
        return pipeline


def choose_decoder(name: LoaderName, device_type: str, threads: int) -> tuple[DaliDecoder | None, str]:
    """Choose who decodes for a device ("cuda", "cpu"): DALI, or None for the loader itself, and a line on why.

    `auto` is the loader itself where its FLAC decoder was built, which takes less of a core than DALI does; where not,
    it is DALI for a GPU where DALI can be imported. Raises `InputError` where `dali` is asked for and it cannot.
    """
    if name == "native":
        return None, f"loader: native, as asked for; {flac_decoder()}"
    if name == "dali":
        return DaliDecoder(threads), "loader: dali, as asked for"
    if flac_library().handle is not None:
        return None, f"loader: native (auto); {flac_decoder()}"
    if device_type != "cuda":
        return None, f"loader: native (auto: dali is for cuda, this is {device_type}); {flac_decoder()}"
    problem = dali_problem()
    if problem:
        return None, f"loader: native (auto: {problem}); {flac_decoder()}"
    why = f"auto: cuda, and DALI is here; native FLAC decoder: {flac_library().about}"
    return DaliDecoder(threads), f"loader: dali ({why})"


def _reason(error: RuntimeError) -> str:
    """What happened, out of a report in many lines."""
    report = str(error)
    return (report.partition("encountered:")[2] or report).strip().partition("\n")[0]


def _cut(wave: np.ndarray, stretch: Stretch) -> np.ndarray:
    """The stretch of a whole wave `[n, 1]`."""
    return wave.reshape(-1)[stretch.start : stretch.start + stretch.frames]
