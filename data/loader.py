"""The native loader: threads read the shards ahead and hand out packed batches in an order that is a pure function.

Epoch e goes through a permutation of all clips keyed by (seed, e); what does not fill a global batch is left out of
that epoch. Crop and caption of a clip depend on (seed, e, clip) alone. So a step's global batch is the same for any
number of ranks and threads, and a run continues where it stopped from a single number.
"""

import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .audio import SAMPLE_RATE
from .batch import AudioTextBatch, collate
from .draws import integers, permutation, uniform
from .shards import Clip, Shards
from .tokens import CaptionTokenizer

# Each use of random bits has its own key, so that none shares its draws with another.
_ORDER, _CROP, _KIND, _CAPTION = range(4)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How clips become batches."""

    batch_size: int
    """Clips in the global batch, over all ranks."""
    crop_seconds: float | None = None
    """Longest stretch of a clip that is used, in seconds, at a random place; None: the whole clip."""
    max_text_tokens: int | None = None
    """Longest caption in tokens, `<s>` and `</s>` included; None: audio only."""
    synthetic_probability: float = 0.8
    """Probability of a synthetic caption for a clip that has captions of both kinds."""
    seed: int = 0
    """Decides order, crops and captions."""
    workers: int = 4
    """Threads that read and decode."""
    prefetch_batches: int = 2
    """Batches that are made ahead."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "prefetch_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.crop_seconds is not None and not self.crop_seconds * SAMPLE_RATE >= 1:
            raise InputError(f"crop_seconds is {self.crop_seconds}; expected a positive number of seconds, or None")
        if self.max_text_tokens is not None and self.max_text_tokens < 2:
            raise InputError(f"max_text_tokens is {self.max_text_tokens}; expected at least 2 (<s> and </s>), or None")
        if not 0 <= self.synthetic_probability <= 1:
            raise InputError(f"synthetic_probability is {self.synthetic_probability}; expected 0 to 1")


class Loader:
    """An endless iterator over this rank's batches; call `close` when done."""

    def __init__(
        self,
        shards: Shards,
        config: LoaderConfig,
        tokenizer: CaptionTokenizer | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Rank `rank` of `world_size` takes rows [rank·B/W, (rank+1)·B/W) of each global batch.

        Raises `InputError` when the batch cannot be filled or divided, or captions are wanted and there are none.
        """
        if config.batch_size > len(shards):
            raise InputError(
                f"batch_size is {config.batch_size}, but {shards.path} holds {len(shards)} clips; lower it"
            )
        if config.batch_size % world_size:
            raise InputError(f"batch_size is {config.batch_size}; expected a multiple of the {world_size} processes")
        if not 0 <= rank < world_size:
            raise InputError(f"rank is {rank}; expected 0 to {world_size - 1}")
        if config.max_text_tokens is not None and not shards.has_captions:
            raise InputError(f"shards {shards.path} have no captions: pack with --captions")
        if config.max_text_tokens is not None and tokenizer is None:
            raise InputError("max_text_tokens is set, but there is no tokenizer; give one, or set it to None")
        self.steps_per_epoch = len(shards) // config.batch_size
        """Global batches in an epoch."""
        self.wait_seconds = 0.0
        """Total time for which `next` was waiting for data, in seconds."""
        self._shards = shards
        self._config = config
        self._tokenizer = tokenizer
        rows = config.batch_size // world_size
        self._rows = slice(rank * rows, (rank + 1) * rows)
        self._step = 0
        self._pending: deque[Future[AudioTextBatch]] = deque()
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._readers = ThreadPoolExecutor(config.workers, thread_name_prefix="loader")
        # A batch waits for its clips in a thread of its own: in the readers' pool that could take every reader.
        self._collator = ThreadPoolExecutor(1, thread_name_prefix="collate")

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> AudioTextBatch:
        begin = time.perf_counter()
        while len(self._pending) < self._config.prefetch_batches:
            self._pending.append(self._submit(self._step + len(self._pending)))
        try:
            batch = self._pending.popleft().result()
        except BaseException:
            # The step was not handed out: asked again, it is made again.
            self._drop_pending()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - begin
        self._step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as of the last batch it returned; the same for every rank."""
        return {
            "step": self._step,
            "fingerprint": self._shards.fingerprint,
            "batch_size": self._config.batch_size,
            "seed": self._config.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which `state` was taken, bit for bit, with any number of ranks and workers.

        Raises `InputError` naming the field when fingerprint, batch_size or seed differ, or the state is malformed.
        """
        for name, here in self.state_dict().items():
            if name not in state:
                raise InputError(f"loader state has no {name}; expected one that state_dict gave")
            if name != "step" and state[name] != here:
                raise InputError(
                    f"loader state: {name} was {state[name]} and is now {here}; expected the same as before"
                )
        if not isinstance(state["step"], int) or state["step"] < 0:
            raise InputError(f"loader state: step is {state['step']!r}; expected a count of batches")
        self._drop_pending()
        self._step = state["step"]

    def close(self) -> None:
        """End the threads; the shards stay open."""
        self._drop_pending()
        self._readers.shutdown(cancel_futures=True)
        self._collator.shutdown(cancel_futures=True)

    def _drop_pending(self) -> None:
        for future in self._pending:
            future.cancel()
        self._pending.clear()

    def _submit(self, step: int) -> Future[AudioTextBatch]:
        epoch, at = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, permutation(len(self._shards), self._config.seed, epoch, _ORDER))
        start = at * self._config.batch_size
        clips = self._order[1][start : start + self._config.batch_size][self._rows]
        futures = [self._readers.submit(self._read, epoch, int(i)) for i in clips]
        return self._collator.submit(self._collate, clips, futures)

    def _collate(self, clips: np.ndarray, futures: list[Future[tuple[np.ndarray, str]]]) -> AudioTextBatch:
        rows = [future.result() for future in futures]
        tokens = None
        if self._tokenizer is not None and self._config.max_text_tokens is not None:
            tokens = self._tokenizer.encode([caption for _, caption in rows], self._config.max_text_tokens)
        return collate([wave for wave, _ in rows], clips, tokens)

    def _read(self, epoch: int, i: int) -> tuple[np.ndarray, str]:
        clip = self._shards.clip(i)
        wanted = clip.samples
        if self._config.crop_seconds is not None:
            wanted = min(wanted, round(self._config.crop_seconds * SAMPLE_RATE))
        start = int(integers(self._config.seed, epoch, i, _CROP, high=clip.samples - wanted + 1))
        wave = self._shards.read(i, start, wanted)
        return wave, self._choose_caption(epoch, clip) if self._config.max_text_tokens is not None else ""

    def _choose_caption(self, epoch: int, clip: Clip) -> str:
        real, synthetic = clip.captions, clip.synthetic_captions
        key = (self._config.seed, epoch, clip.index)
        takes_synthetic = bool(uniform(*key, _KIND) < self._config.synthetic_probability)
        choices = synthetic if synthetic and (takes_synthetic or not real) else real
        if not choices:
            raise InputError(f"shards {self._shards.path}: clip {clip.key} has no caption: pack with --captions")
        return choices[int(integers(*key, _CAPTION, high=len(choices)))]
