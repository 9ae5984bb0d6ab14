"""Whether a process that trains for long keeps its size: the demo's runs again and again, and what it holds."""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.pack import pack
from ..data.synthetic import make_corpus
from ..engine.config import Stage
from ..engine.evaluate.datasets.packed import read_packed
from ..engine.evaluate.retrieval import evaluate_retrieval
from ..engine.inference import load
from ..engine.presets import demo_stage1, demo_stage2
from ..engine.reconstruction import draw_reconstruction
from ..engine.trainer import train
from ..errors import InputError, RunError

MIB = 2**20
MIN_ROUNDS = 4
"""Rounds after the warm-up that a verdict needs."""

# Who looks has files open, which another thread that looks would count.
_looking = threading.Lock()


@dataclass(frozen=True)
class Sample:
    """What the process and its children held at a time: ``seconds`` since the first round began."""

    seconds: float
    resident_bytes: int
    descriptors: int


@dataclass(frozen=True)
class Round:
    """A round: when it ended, the median of what was resident during it, file descriptors open after it."""

    seconds: float
    resident_bytes: float
    descriptors: int


@dataclass(frozen=True, kw_only=True)
class SoakSettings:
    """What is run: ``steps`` of each stage in a round, rounds until ``minutes`` are over."""

    minutes: float
    warm_up_minutes: float
    steps: int
    train_clips: int
    test_clips: int
    sample_seconds: float
    limit_mib_per_hour: float
    device: str

    def check(self) -> None:
        """Raise InputError that names the flag to change."""
        for name in ("minutes", "steps", "sample_seconds", "limit_mib_per_hour"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected more than 0")
        if not 0 <= self.warm_up_minutes < self.minutes:
            raise InputError(
                f"--warm-up-minutes is {self.warm_up_minutes:g} of --minutes {self.minutes:g}; expected 0 or more, and "
                "less than all"
            )
        if not Path("/proc/self/statm").exists():
            raise InputError("bench soak reads Linux' /proc, which is not here; run it on Linux")


@dataclass
class Soak:
    """What was measured, in order."""

    samples: list[Sample] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Growth after the warm-up, over ``rounds`` rounds, and why that is too much; ``problems`` is empty where not."""

    rounds: int
    resident_mib: float
    """Median of the rounds."""
    mib_per_hour: float
    """Median of the slopes between any two rounds (Theil and Sen): one odd round does not turn it."""
    descriptors: int
    """Open after the last round."""
    more_descriptors: int
    """Most after any round, less those after the first."""
    problems: tuple[str, ...]


def soak(settings: SoakSettings, directory: Path, after_round: Callable[[Soak], None]) -> Soak:
    """Train both stages of the demo in ``directory`` again and again: half of the steps, resume, evaluate, caption.

    ``after_round`` is called with what was measured so far. What a round wrote is gone after it.
    """
    clips = _prepare(settings, directory)
    begun, measured = time.perf_counter(), Soak()
    with _sampling(measured.samples, begun, settings.sample_seconds):
        while time.perf_counter() - begun < 60 * settings.minutes:
            first = len(measured.samples)
            _round(settings, directory, clips)
            now = sample(begun)
            during = [one.resident_bytes for one in [*measured.samples[first:], now]]
            measured.rounds.append(Round(now.seconds, float(np.median(during)), now.descriptors))
            after_round(measured)
    return measured


def _prepare(settings: SoakSettings, directory: Path) -> list[Path]:
    """Make and pack the demo's corpus; returns some of its clips."""
    corpus = make_corpus(directory / "corpus", train_clips=settings.train_clips, test_clips=settings.test_clips)
    pack(corpus.train_dir, directory / "train-shards", captions=corpus.train_captions, progress=False)
    pack(corpus.test_dir, directory / "test-shards", captions=corpus.test_captions, progress=False)
    return sorted(corpus.test_dir.iterdir())[:3]


def _round(settings: SoakSettings, directory: Path, clips: Sequence[Path]) -> None:
    data, runs = directory / "train-shards", directory / "runs"
    configs: dict[Stage, Any] = {"mae": demo_stage1(), "contrastive": demo_stage2()}
    for stage, preset in configs.items():
        init = None if stage == "mae" else runs / "mae"
        config = replace(
            preset,
            device=settings.device,
            steps=settings.steps,
            save_every_steps=-(-settings.steps // 4),
            update=replace(preset.update, warmup_steps=min(preset.update.warmup_steps, settings.steps // 4)),
        )
        half = replace(config, steps=-(-settings.steps // 2))
        begun = train(stage, half, data, runs / stage, init=init)
        ended = train(stage, config, data, runs / stage, init=init, resume=True, allow_changed=True)
        if begun.stopped_by or ended.stopped_by:
            raise KeyboardInterrupt
    model = load(runs / "contrastive", device=settings.device)
    evaluate_retrieval(model, read_packed(directory / "test-shards"), progress=False)
    model.caption(clips)
    draw_reconstruction(runs / "mae", directory / "test-shards", 0, runs / "reconstruction.png")
    shutil.rmtree(runs)


def judge(rounds: Sequence[Round], settings: SoakSettings) -> Verdict:
    """Judge the rounds that began after the warm-up; raises RunError where they are too few."""
    starts = [0.0, *(one.seconds for one in rounds)]
    judged = [one for start, one in zip(starts, rounds, strict=False) if start >= 60 * settings.warm_up_minutes]
    if len(judged) < MIN_ROUNDS:
        raise RunError(
            f"{len(judged)} rounds began after the warm-up, expected at least {MIN_ROUNDS} to judge; raise --minutes, "
            "or lower --steps"
        )
    hours = np.array([one.seconds for one in judged]) / 3600
    mib = np.array([one.resident_bytes for one in judged]) / MIB
    early, late = np.triu_indices(len(judged), 1)
    slope = float(np.median((mib[late] - mib[early]) / (hours[late] - hours[early])))
    more = max(one.descriptors for one in judged) - judged[0].descriptors
    problems = []
    if slope > settings.limit_mib_per_hour:
        problems.append(f"resident memory grows by {slope:.0f} MiB an hour, more than {settings.limit_mib_per_hour:g}")
    if more > 0:
        problems.append(f"{more} more file descriptors are open than after the first round that counts")
    return Verdict(
        rounds=len(judged),
        resident_mib=float(np.median(mib)),
        mib_per_hour=slope,
        descriptors=judged[-1].descriptors,
        more_descriptors=more,
        problems=tuple(problems),
    )


def sample(begun: float) -> Sample:
    """Return what this process and its children hold now; what they share counts for each of them."""
    resident = descriptors = 0
    with _looking:
        for process in _process_tree():
            with contextlib.suppress(OSError):  # it has just ended
                pages = int((process / "statm").read_text().split()[1])
                descriptors += len(os.listdir(process / "fd"))
                resident += pages * os.sysconf("SC_PAGE_SIZE")
    return Sample(time.perf_counter() - begun, resident, descriptors)


def _process_tree() -> list[Path]:
    """Return the directories in /proc of this process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # The second field, the program's name in brackets, may hold anything.
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    tree = [os.getpid()]
    for process in tree:  # grows as it goes
        tree += children.get(process, [])
    return [Path("/proc", str(process)) for process in tree]


@contextlib.contextmanager
def _sampling(samples: list[Sample], begun: float, every_seconds: float) -> Iterator[None]:
    """Add a sample every so often while the body runs."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every_seconds):
            try:
                samples.append(sample(begun))
            except OSError as error:
                print(f"no sample: {error}", file=sys.stderr)

    thread = threading.Thread(target=run, name="soak", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
