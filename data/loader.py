"""The loader: threads read the shards ahead and hand out packed batches in an order that is a pure function.

What a step holds is decided by :mod:`.sampling` alone, so the global batch is the same for any number of ranks and
threads and for any way of decoding, and a run continues where it stopped from a single number. The waves are decoded
many at a time, to where they lie in the batch, by a :class:`BatchDecoder`, or one by one by the threads that read.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..errors import InputError
from .audio import SAMPLE_RATE
from .batch import AudioTextBatch, collate_packed
from .damage import DamageCount
from .flac import Stretch, native_decoder
from .packing import allocate, copy_waves
from .sampling import Draw, Sampler, Step
from .shards import Clip, DamagedMember, Shards
from .tokens import CaptionTokenizer

_MAX_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How clips become batches."""

    batch_size: int
    """Clips in the global batch, over all ranks."""
    crop_seconds: float | None = None
    """Longest stretch of a clip that is used, in seconds, at a random place; None: the whole clip."""
    fixed_seconds: float | None = None
    """Length of every clip, in seconds, whatever `crop_seconds`: longer ones are cropped at a random place, silence
    follows shorter ones; None: clips keep their lengths."""
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
    max_bad_share: float = 0.05
    """Share of an epoch's clips that may be damaged, and are replaced, before the loader gives up."""
    pin_memory: bool = False
    """Put batches into page-locked memory, from which a GPU copies without making the host wait."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "prefetch_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("crop_seconds", "fixed_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds * SAMPLE_RATE >= 1:
                raise InputError(f"{name} is {seconds}; expected a positive number of seconds, or None")
        if self.max_text_tokens is not None and self.max_text_tokens < 2:
            raise InputError(f"max_text_tokens is {self.max_text_tokens}; expected at least 2 (<s> and </s>), or None")
        for name in ("synthetic_probability", "max_bad_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 to 1")


class BatchDecoder(Protocol):
    """Decodes many stretches at a time."""

    def accepts(self, stretch: Stretch) -> bool:
        """Whether it is one for this decoder."""
        ...

    def decode(self, stretches: Sequence[Stretch], packed: np.ndarray, places: Sequence[int]) -> Sequence[bool]:
        """Decode stretches to `packed` (int16 `[S]`), each to its place in samples.

        False for one that it cannot give, which says nothing of the member.
        """
        ...

    def close(self) -> None:
        """Give back what the decoder holds."""
        ...


@dataclass(slots=True)
class _Row:
    """A clip of a batch, and the samples of its stretch, int16 `[frames]`, where they are decoded already."""

    clip: Clip
    caption: str
    stretch: Stretch
    wave: np.ndarray | None
    replaced: list[DamagedMember]


@dataclass(frozen=True, slots=True)
class _Gathered:
    """The rows of a batch; `packed` holds the waves of those that have none themselves."""

    rows: list[_Row]
    packed: Tensor
    offsets: Tensor


class Loader:
    """An endless iterator over this rank's batches; call `close` when done.

    A clip with a damaged member is replaced by `Step.replacement`, the same clip on every path, counted in `damage` and
    named in the log.
    """

    def __init__(
        self,
        shards: Shards,
        config: LoaderConfig,
        tokenizer: CaptionTokenizer | None = None,
        rank: int = 0,
        world_size: int = 1,
        decoder: BatchDecoder | None = None,
    ) -> None:
        """Rank `rank` of `world_size` takes rows [rank·B/W, (rank+1)·B/W) of each global batch.

        `decoder` (closed with the loader) decodes what it accepts, the threads the rest; where none is given it is the
        native library, if that was built. Raises `InputError` when the batch cannot be filled or divided, or captions
        are wanted and there are none.
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
        rows = config.batch_size // world_size
        self._sampler = Sampler(len(shards), config.batch_size, config.seed)
        self.steps_per_epoch = self._sampler.steps_per_epoch
        """Global batches in an epoch."""
        self.damage = DamageCount(self.steps_per_epoch * rows, config.max_bad_share)
        """The damaged members that this rank has replaced since the loader was made."""
        self._shards = shards
        self._config = config
        self._tokenizer = tokenizer
        self._fixed = None if config.fixed_seconds is None else round(config.fixed_seconds * SAMPLE_RATE)
        self._longest = None if config.crop_seconds is None else round(config.crop_seconds * SAMPLE_RATE)
        self._longest = self._longest if self._fixed is None else self._fixed
        self._rows = slice(rank * rows, (rank + 1) * rows)
        self._step = 0
        self._pending: deque[Future[tuple[AudioTextBatch, list[DamagedMember]]]] = deque()
        self._readers = ThreadPoolExecutor(config.workers, thread_name_prefix="loader")
        self._decoder = decoder or native_decoder(self._readers, config.workers)
        # A batch waits for its clips in threads of their own: in the readers' pool it could take every reader. There
        # are two of them, so that a batch is decoded while the one before it is packed.
        self._gatherer = ThreadPoolExecutor(1, thread_name_prefix="gather")
        self._collator = ThreadPoolExecutor(1, thread_name_prefix="collate")

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> AudioTextBatch:
        while len(self._pending) < self._config.prefetch_batches:
            self._pending.append(self._submit(self._step + len(self._pending)))
        try:
            batch, replaced = self._pending.popleft().result()
            self.damage.add(self._step // self.steps_per_epoch, replaced)
        except BaseException:
            # The step was not handed out: asked again, it is made again.
            self._drop_pending()
            raise
        self._step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as of the last batch it returned; the same for every rank and every decoder."""
        return {
            "step": self._step,
            "fingerprint": self._shards.fingerprint,
            "batch_size": self._config.batch_size,
            "seed": self._config.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which `state` was taken, bit for bit, with any ranks, workers and decoder.

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
        for pool in (self._readers, self._gatherer, self._collator):
            pool.shutdown(cancel_futures=True)
        if self._decoder is not None:
            self._decoder.close()

    def _drop_pending(self) -> None:
        for future in self._pending:
            future.cancel()
        self._pending.clear()

    def _submit(self, number: int) -> Future[tuple[AudioTextBatch, list[DamagedMember]]]:
        step = self._sampler.step(number)
        draws = step.draws(self._rows)
        rows = [self._readers.submit(self._read, step, draw, self._decoder) for draw in draws]
        gathered = self._gatherer.submit(self._gather, step, draws, rows)
        return self._collator.submit(self._collate, gathered)

    def _read(self, step: Step, draw: Draw, decoder: BatchDecoder | None) -> _Row:
        """The row that `draw` decides, or its replacement; its wave only where `decoder` does not accept it."""
        replaced: list[DamagedMember] = []
        taken = draw
        for attempt in range(_MAX_ATTEMPTS):
            try:
                return self._read_clip(taken, decoder, replaced)
            except DamagedMember as error:
                replaced.append(error)
                taken = step.replacement(draw.clip, attempt)
        raise InputError(
            f"shards {self._shards.path}: {_MAX_ATTEMPTS} clips in a row are damaged, the last: "
            f"{replaced[-1].what}; pack again"
        )

    def _read_clip(self, draw: Draw, decoder: BatchDecoder | None, replaced: list[DamagedMember]) -> _Row:
        clip = self._shards.clip(draw.clip)
        caption = ""
        if self._config.max_text_tokens is not None:
            caption = draw.caption(clip, self._config.synthetic_probability)
            if not caption:
                raise InputError(f"shards {self._shards.path}: clip {clip.key} has no caption: pack with --captions")
        flac = self._shards.flac(clip)
        stretch = Stretch(flac, clip.samples, *draw.crop(clip.samples, self._longest))
        if decoder is not None and decoder.accepts(stretch):
            return _Row(clip, caption, stretch, None, replaced)
        wave = self._shards.decode(clip, flac, stretch.start, stretch.frames)
        return _Row(clip, caption, stretch, wave, replaced)

    def _gather(self, step: Step, draws: list[Draw], reading: list[Future[_Row]]) -> _Gathered:
        rows = [row.result() for row in reading]
        encoded = [b for b, row in enumerate(rows) if row.wave is None]
        packed, offsets = self._allocate(rows)
        if self._decoder is None or not encoded:
            return _Gathered(rows, packed, offsets)
        places = offsets[encoded].tolist()
        decoded = self._decoder.decode([rows[b].stretch for b in encoded], packed.numpy(), places)
        # The threads' decoder is the judge of what is damaged, on every path.
        again = [
            (b, self._readers.submit(self._read, step, draws[b], None))
            for b, right in zip(encoded, decoded, strict=True)
            if not right
        ]
        if not again:
            return _Gathered(rows, packed, offsets)
        for b, place in zip(encoded, places, strict=True):
            rows[b].wave = packed.numpy()[place : place + rows[b].stretch.frames]
        for b, row in again:
            rows[b] = row.result()
        return _Gathered(rows, *self._allocate(rows))  # others have other lengths

    def _allocate(self, rows: list[_Row]) -> tuple[Tensor, Tensor]:
        lengths = [self._fixed or row.stretch.frames for row in rows]
        return allocate(lengths, pin_memory=self._config.pin_memory)

    def _collate(self, gathering: Future[_Gathered]) -> tuple[AudioTextBatch, list[DamagedMember]]:
        gathered = gathering.result()
        rows, packed, places = gathered.rows, gathered.packed.numpy(), gathered.offsets.tolist()
        waves = [(row.wave, place) for row, place in zip(rows, places, strict=False) if row.wave is not None]
        copy_waves([wave for wave, _ in waves], packed, [place for _, place in waves])
        for row, place, end in zip(rows, places, places[1:], strict=False):
            packed[place + row.stretch.frames : end] = 0  # silence, where the length is fixed
        tokens = None
        if self._tokenizer is not None and self._config.max_text_tokens is not None:
            tokens = self._tokenizer.encode([row.caption for row in rows], self._config.max_text_tokens)
        batch = collate_packed(gathered.packed, gathered.offsets, [row.clip.index for row in rows], tokens)
        return (batch.pin_memory() if self._config.pin_memory else batch), [m for row in rows for m in row.replaced]
