"""How fast clips come out of shards, by loader and by stage, and what a core's second of that costs.

The ways: the loader's own threads (``native``), the same with libsndfile (``soundfile``) or DALI (``dali``) as decoder,
and what trainers mostly do (``torch``, :mod:`.torch_loader`): a DataLoader over files, soundfile, padding; log-mel
after it or in its workers.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from ..data.loader import Loader, LoaderConfig
from ..data.pack import pack
from ..data.shards import Clip, Shards
from ..data.synthesis import BACKGROUNDS, MOTIONS, PITCHES, RHYTHMS, SAMPLE_RATE, SOURCES, Scene, render_scene
from ..errors import InputError, RunError
from .child import run_module
from .data_decoders import make_decoder
from .data_settings import DataProvider, DataSettings
from .data_stages import MIN_PASSES, STAGES, DataRates, Stages
from .providers import why

LOADER = "loader"

_CHILD_STARTS_S = 60.0  # at most, on a busy machine


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
        with _one_thread(), ThreadPoolExecutor(1) as pool:
            bench = Stages(shards, clips, files, settings, pool)
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
    with (
        ThreadPoolExecutor(settings.workers) as pool,
        contextlib.closing(Loader(shards, config, decoder=make_decoder(provider, pool, settings.workers))) as loader,
    ):
        next(loader)
        # In the mean of the clips that the stages are given; of other clips nobody asked the size.
        flac_bytes = sum(file.stat().st_size for file in files) / len(files)
        samples = clips = 0
        begun, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - begun < settings.seconds or clips < MIN_PASSES * settings.batch_size:
            batch = next(loader)
            clips += batch.num_clips
            samples += len(batch.wave)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    return DataRates(clips, seconds, cpu_seconds, samples / SAMPLE_RATE, round(flac_bytes * clips))


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
