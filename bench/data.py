"""How fast clips come out of shards, by loader and by stage, and what a core's second of that costs.

The ways: the loader's own threads (``native``), the same with DALI as decoder (``dali``), and what trainers mostly do
(``torch``, :mod:`.torch_loader`): a DataLoader over files, soundfile, padding; log-mel after it or in its workers.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from torch import Tensor

from ..data.batch import AudioTextBatch, collate_packed
from ..data.dali import DaliDecoder
from ..data.frontend import DaliLogMel
from ..data.loader import Loader, LoaderConfig
from ..data.pack import MAX_SECONDS, MIN_SECONDS, pack
from ..data.packing import allocate, copy_waves
from ..data.shards import Clip, Shards
from ..data.synthesis import BACKGROUNDS, MOTIONS, PITCHES, RHYTHMS, SAMPLE_RATE, SOURCES, Scene, render_scene
from ..engine.stopwatch import synchronise
from ..errors import InputError, RunError
from ..kernels.log_mel import log_mel
from .child import run_module
from .providers import check_names, why
from .torch_loader import pad_waves, padded_log_mel, read_wave

DataProvider = Literal["native", "dali", "torch", "torch + mel"]
PROVIDERS: tuple[DataProvider, ...] = ("native", "dali", "torch", "torch + mel")
LOADER = "loader"
STAGES = ("read", "decode", "crop + pack", "copy", "mel")

_CHILD_STARTS_S = 60.0  # at most, on a busy machine
_MIN_PASSES = 2


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


@dataclass(frozen=True)
class DataRow:
    """A provider's loader, or one stage alone in one thread; either ``rates`` or the ``reason`` why there are none."""

    what: str
    provider: DataProvider
    workers: int
    reason: str | None = None
    rates: dict[str, float] | None = None


def bench_data(settings: DataSettings, folder: Path) -> Iterator[DataRow]:
    """Measure every provider's loader, then its stages; a synthetic corpus and copies of clips go into ``folder``."""
    settings.check()
    path = Path(settings.data) if settings.data else make_shards(folder, settings.clips, settings.clip_seconds)
    with Shards.open(path) as shards:
        if len(shards) < settings.clips:
            raise InputError(f"{path} holds {len(shards)} clips; expected at least the {settings.clips} of --clips")
        clips = [shards.clip(i) for i in range(settings.clips)]
        files = _extract(shards, clips, folder / "files")
        for provider in settings.providers:
            yield _row(LOADER, provider, settings.workers, lambda p=provider: _loader_rates(p, shards, files, settings))
        bench = _Stages(shards, clips, files, settings)
        with _one_thread():
            for stage in STAGES:
                for provider in settings.providers:
                    if (measured := bench.of(stage, provider)) is not None:
                        yield _row(stage, provider, 1, measured)


def make_shards(folder: Path, clips: int, seconds: float) -> Path:
    """Write and pack ``clips`` synthetic scenes of ``seconds``; returns the packed directory."""
    audio, rng = folder / "audio", np.random.default_rng(0)
    audio.mkdir(parents=True)
    for number in range(clips):
        values = [str(rng.choice(words)) for words in (SOURCES, PITCHES, MOTIONS, RHYTHMS, BACKGROUNDS)]
        wave = render_scene(Scene(*values), seconds, rng)
        soundfile.write(audio / f"{number:05d}.wav", wave, SAMPLE_RATE, subtype="PCM_16")
    pack(audio, folder / "shards", progress=False)
    return folder / "shards"


def _extract(shards: Shards, clips: Sequence[Clip], folder: Path) -> list[Path]:
    folder.mkdir()
    files = [folder / f"{clip.key}.flac" for clip in clips]
    for clip, file in zip(clips, files, strict=True):
        file.write_bytes(shards.flac(clip))
    return files


def _row(what: str, provider: DataProvider, workers: int, measure: Callable[[], DataRates]) -> DataRow:
    try:
        return DataRow(what, provider, workers, rates=measure().figures())
    except Exception as error:
        return DataRow(what, provider, workers, reason=why(error))


def _loader_rates(provider: DataProvider, shards: Shards, files: Sequence[Path], settings: DataSettings) -> DataRates:
    if provider in ("torch", "torch + mel"):
        asked = {
            "files": [str(file) for file in files],
            "mel": provider == "torch + mel",
            **{name: getattr(settings, name) for name in ("batch_size", "workers", "crop_seconds", "seconds")},
        }
        limit = _CHILD_STARTS_S + 5 * settings.seconds
        done = run_module("cacophony.bench.torch_loader", stdin=json.dumps(asked), seconds=limit)
        if done.returncode != 0:
            raise RunError(done.complaint or "its time was over")
        return DataRates(**done.rows[-1])
    config = LoaderConfig(
        batch_size=settings.batch_size,
        crop_seconds=settings.crop_seconds,
        workers=settings.workers,
        pin_memory=settings.device.startswith("cuda"),
    )
    decoder = DaliDecoder(settings.workers) if provider == "dali" else None
    with contextlib.closing(Loader(shards, config, decoder=decoder)) as loader:
        next(loader)
        # In the mean of the clips that the stages are given; of other clips nobody asked the size.
        flac_bytes = sum(file.stat().st_size for file in files) / len(files)
        samples = clips = 0
        begun, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - begun < settings.seconds or clips < _MIN_PASSES * settings.batch_size:
            batch = next(loader)
            clips += batch.num_clips
            samples += len(batch.wave)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    return DataRates(clips, seconds, cpu_seconds, samples / SAMPLE_RATE, round(flac_bytes * clips))


class _Stages:
    """The stages of a batch one by one, each on all clips until its time is over."""

    def __init__(self, shards: Shards, clips: Sequence[Clip], files: Sequence[Path], settings: DataSettings) -> None:
        self.shards, self.clips, self.files, self.settings = shards, clips, files, settings
        self.device = torch.device(settings.device)
        self.flacs = [shards.flac(clip) for clip in clips]
        self.frames = [min(clip.samples, round(settings.crop_seconds * SAMPLE_RATE)) for clip in clips]
        self.waves = [
            shards.decode(clip, flac, 0, n) for clip, flac, n in zip(clips, self.flacs, self.frames, strict=True)
        ]

    def of(self, stage: str, provider: DataProvider) -> Callable[[], DataRates] | None:
        """Return what measures a stage; None where the provider does it as another one or not at all."""
        if provider == "torch + mel" or (provider == "dali" and stage in ("read", "crop + pack", "copy")):
            return None
        flac_bytes, pcm_bytes = sum(map(len, self.flacs)), 2 * sum(self.frames)
        moved = flac_bytes if stage in ("read", "decode") else pcm_bytes
        run = {"read": self._read, "decode": self._decode, "crop + pack": self._pack, "mel": self._mel}
        if stage == "copy":
            return (lambda: self._measure(self._copy(), moved)) if provider == "native" else None
        return lambda: self._measure(run[stage](provider), moved)

    def _measure(self, run: Callable[[], Any], moved: int) -> DataRates:
        run()  # compiles, allocates
        synchronise(self.device)
        passes, begun, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begun < self.settings.seconds / 4 or passes < _MIN_PASSES:
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
        if provider == "torch":
            return lambda: [read_wave(flac, 0, n) for flac, n in zip(self.flacs, self.frames, strict=True)]
        if provider == "native":
            rows = list(zip(self.clips, self.flacs, self.frames, strict=True))
            return lambda: [self.shards.decode(clip, flac, 0, n) for clip, flac, n in rows]
        decoder = DaliDecoder(1)
        return lambda: decoder.decode(self.flacs)

    def _pack(self, provider: DataProvider) -> Callable[[], Any]:
        if provider == "torch":
            waves = [torch.from_numpy(wave / np.float32(32_768)) for wave in self.waves]
            return lambda: pad_waves(waves)
        return self._batch

    def _batch(self) -> AudioTextBatch:
        packed, offsets = allocate(self.frames, pin_memory=self.device.type == "cuda")
        copy_waves(self.waves, packed.numpy(), offsets[:-1].tolist())
        return collate_packed(packed, offsets, [clip.index for clip in self.clips], None)

    def _copy(self) -> Callable[[], Any]:
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


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> int:
    """Bench the settings read from stdin as JSON, one row a line, as it is known: for other processes."""
    asked = json.load(sys.stdin)
    for row in bench_data(DataSettings(**asked["settings"]), Path(asked["folder"])):
        print(json.dumps(asdict(row)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
