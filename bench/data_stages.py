"""The stages of loading one by one, each in one thread, on files that the system has in its cache."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.audio import SAMPLE_RATE
from ..data.batch import AudioTextBatch, collate_packed
from ..data.flac import Stretch
from ..data.frontend import DaliLogMel
from ..data.packing import allocate, copy_waves
from ..data.shards import Clip, Shards
from ..engine.stopwatch import synchronise
from ..errors import InputError, RunError
from ..kernels.log_mel import log_mel
from .data_decoders import make_decoder
from .data_settings import DataProvider, DataSettings
from .torch_loader import pad_waves, padded_log_mel, read_wave

STAGES = ("read", "decode", "crop + pack", "copy", "mel")
MIN_PASSES = 2

# Who has a stage of its own: decoders write to where the samples lie in the batch, and all but DALI share a front-end.
_OF: dict[str, tuple[DataProvider, ...]] = {
    "read": ("native", "torch"),
    "decode": ("native", "soundfile", "dali", "torch"),
    "crop + pack": ("torch",),
    "copy": ("native",),
    "mel": ("native", "dali", "torch"),
}


@dataclass(frozen=True)
class DataRates:
    """What was moved in the time measured; ``bytes`` of FLAC, of the stages after decoding int16 samples."""

    clips: int
    seconds: float
    cpu_seconds: float
    audio_seconds: float
    bytes: int

    def figures(self) -> dict[str, float]:
        """Return the rates, as they stand in the JSON file."""
        return {
            "clips": self.clips,
            "seconds": self.seconds,
            "clips_per_s": self.clips / self.seconds,
            "audio_hours_per_s": self.audio_seconds / 3600 / self.seconds,
            "bytes_per_s": self.bytes / self.seconds,
            "cpu_seconds_per_clip": self.cpu_seconds / self.clips,
            "clip_seconds": self.audio_seconds / self.clips,
        }


class Stages:
    """The stages of a batch one by one, each on all clips until its time is over."""

    def __init__(
        self,
        shards: Shards,
        clips: Sequence[Clip],
        files: Sequence[Path],
        settings: DataSettings,
        pool: ThreadPoolExecutor,
    ) -> None:
        """`pool` has one thread."""
        self.shards, self.clips, self.files, self.settings = shards, clips, files, settings
        self.device = torch.device(settings.device)
        self.pool = pool
        self.flacs = [shards.flac(clip) for clip in clips]
        self.frames = [min(clip.samples, round(settings.crop_seconds * SAMPLE_RATE)) for clip in clips]
        self.waves = [
            shards.decode(clip, flac, 0, n) for clip, flac, n in zip(clips, self.flacs, self.frames, strict=True)
        ]

    def of(self, stage: str, provider: DataProvider) -> Callable[[], DataRates] | None:
        """Return what measures a stage; None where the provider does it as another one or not at all."""
        if provider not in _OF[stage]:
            return None
        flac_bytes, pcm_bytes = sum(map(len, self.flacs)), 2 * sum(self.frames)
        moved = flac_bytes if stage in ("read", "decode") else pcm_bytes
        run = {
            "read": self._read,
            "decode": self._decode,
            "crop + pack": self._pack,
            "copy": self._copy,
            "mel": self._mel,
        }
        return lambda: self._measure(run[stage](provider), moved)

    def _measure(self, run: Callable[[], Any], moved: int) -> DataRates:
        run()  # compiles, allocates
        synchronise(self.device)
        passes, begun, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begun < self.settings.seconds / 4 or passes < MIN_PASSES:
            run()
            passes += 1
        synchronise(self.device)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
        audio = passes * sum(self.frames) / SAMPLE_RATE
        return DataRates(passes * len(self.clips), seconds, cpu_seconds, audio, passes * moved)

    def _read(self, provider: DataProvider) -> Callable[[], Any]:
        if provider == "torch":
            return lambda: [file.read_bytes() for file in self.files]
        return lambda: [self.shards.flac(self.shards.clip(clip.index)) for clip in self.clips]

    def _decode(self, provider: DataProvider) -> Callable[[], Any]:
        if provider in ("torch", "torch + mel"):
            return lambda: [read_wave(flac, 0, n) for flac, n in zip(self.flacs, self.frames, strict=True)]
        decoder = make_decoder(provider, self.pool, 1)
        stretches = [
            Stretch(flac, clip.samples, 0, n) for flac, clip, n in zip(self.flacs, self.clips, self.frames, strict=True)
        ]

        def decode() -> None:
            packed, offsets = allocate(self.frames)
            if not all(decoder.decode(stretches, packed.numpy(), offsets[:-1].tolist())):
                raise RunError("a clip was refused")

        return decode

    def _pack(self, _: DataProvider) -> Callable[[], Any]:
        waves = [torch.from_numpy(wave / np.float32(32_768)) for wave in self.waves]
        return lambda: pad_waves(waves)

    def _batch(self) -> AudioTextBatch:
        packed, offsets = allocate(self.frames, pin_memory=self.device.type == "cuda")
        copy_waves(self.waves, packed.numpy(), offsets[:-1].tolist())
        return collate_packed(packed, offsets, [clip.index for clip in self.clips], None)

    def _copy(self, _: DataProvider) -> Callable[[], Any]:
        if self.device.type == "cpu":
            raise InputError("there is no device to copy to")
        batch = self._batch()
        return lambda: batch.to(self.device)

    def _mel(self, provider: DataProvider) -> Callable[[], Any]:
        if provider == "torch":
            padded: tuple[Tensor, Tensor] = pad_waves([torch.from_numpy(w / np.float32(32_768)) for w in self.waves])
            waves = padded[0].to(self.device)
            return lambda: padded_log_mel(waves)
        batch = self._batch().to(self.device)
        front_end = log_mel if provider == "native" else DaliLogMel(self.device)
        return lambda: front_end(batch.wave, batch.wave_offsets)
