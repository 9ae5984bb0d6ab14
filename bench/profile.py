"""A step of a stage, the same batch through plain PyTorch and through what the device has fused: where its time goes.

Of each path a Chrome trace, on a GPU a snapshot of its memory (in the format of PyTorch's own viewer) and NVTX ranges,
so that Nsight Systems shows the same marks.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..engine.config import Precision, Stage
from ..engine.phases import PHASES, STEP, UPDATE
from ..engine.stopwatch import synchronise
from ..errors import InputError
from ..kernels.spans import listening, listening_to_ops, span
from ..models.config import AUDIO_MAE_SIZES
from .op_work import OpWork, count_work
from .step_trace import BETWEEN, OP_MARK, PHASE_MARK, StepTrace, read_step
from .training_step import Variant, training_step

ProfilePath = Literal["reference", "fused"]
"""Plain PyTorch with autograd and the update tensor by tensor; or blocks by hand, the arena, and every op that the
device has fused."""

PATHS: tuple[ProfilePath, ...] = get_args(ProfilePath)


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """What is profiled."""

    stage: Stage
    paths: Sequence[ProfilePath] = PATHS
    size: str = "demo"
    """Networks, see :mod:`cacophony.models.config`."""
    clips: int = 16
    """Clips of the step, in one micro-batch."""
    precision: Precision = "fp32"
    device: str = "cpu"
    rounds: int = 3
    """Steps timed without the profiler, whose cost is not the step's."""

    def check(self) -> None:
        """Raise InputError where a number is too small or a name unknown."""
        for name in ("clips", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}; expected at least 1")
        if self.size not in AUDIO_MAE_SIZES:
            raise InputError(f"--size {self.size!r} is unknown; expected one of: {', '.join(AUDIO_MAE_SIZES)}")
        unknown = [path for path in self.paths if path not in PATHS]
        if unknown or not self.paths or len(set(self.paths)) < len(self.paths):
            raise InputError(f"--path is {','.join(self.paths)!r}; expected one or both of {','.join(PATHS)}")


@dataclass(frozen=True)
class Cell:
    """What a phase spends in an op: seconds under the profiler, and calls of its kernels or ATen ops."""

    phase: str
    op: str
    seconds: float
    calls: int


@dataclass(frozen=True)
class PathProfile:
    """One path's step."""

    stage: Stage
    path: ProfilePath
    seconds: float
    """Of a step without the profiler, the median."""
    profiled_seconds: float
    """Of the step under it."""
    on_device: bool
    """Whether cells are times of the device's kernels, which do not fill the step; else of the host, which do."""
    cells: Sequence[Cell]
    work: Sequence[Mapping[str, Any]]
    """Compulsory work by phase and op, of the ops that this path dispatches: phase, op, bytes, flops."""
    files: Sequence[str]


def profile_step(settings: ProfileSettings, out: Path | None = None) -> Iterator[tuple[PathProfile, StepTrace]]:
    """Profile a step of each path; traces and snapshots go to directory ``out``, if there is one."""
    settings.check()
    with TemporaryDirectory() as scratch:
        for path in settings.paths:
            yield _profile_path(settings, path, Path(scratch) if out is None else out, keep=out is not None)


def _profile_path(
    settings: ProfileSettings, path: ProfilePath, folder: Path, *, keep: bool
) -> tuple[PathProfile, StepTrace]:
    device = torch.device(settings.device)
    sizes = settings.stage, settings.size, settings.clips, settings.precision
    step = training_step(*sizes, Variant(path, "packed"), device, must_fuse=False)
    work = count_work(step)  # the first step, which may compile
    step()
    seconds = sorted(_timed(step, device) for _ in range(settings.rounds))[settings.rounds // 2]
    trace_file = folder / f"{settings.stage}.{path}.trace.json"
    _trace(step, device, trace_file)
    trace = read_step(trace_file)
    files = [trace_file]
    if device.type == "cuda" and keep:
        files.append(_memory_snapshot(step, device, folder / f"{settings.stage}.{path}.memory.pickle"))
    cells = [
        Cell(phase, op, spent, trace.calls.get((phase, op), 0)) for (phase, op), spent in sorted_cells(trace.seconds())
    ]
    found = PathProfile(
        settings.stage,
        path,
        seconds,
        trace.microseconds / 1e6,
        trace.on_device,
        cells,
        _work_rows(work),
        [str(file) for file in files] if keep else [],
    )
    return found, trace


def sorted_cells(seconds: Mapping[tuple[str, str], float]) -> list[tuple[tuple[str, str], float]]:
    """Return the cells phase by phase as a step has them, the longest op of each first."""
    order = (*PHASES, BETWEEN)
    return sorted(seconds.items(), key=lambda cell: (order.index(cell[0][0]), -cell[1]))


def _work_rows(work: OpWork) -> list[dict[str, Any]]:
    return [{"phase": phase, "op": op} | asdict(found) for (phase, op), found in work.items()]


def compulsory_work(profiles: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return what a step cannot do without by phase and op, whatever the path, from rows as in the JSON.

    Forward and backward dispatch every op on the plain path only, the update on the other.
    """
    return {
        (row["phase"], row["op"]): row
        for profiled in profiles
        for row in profiled["work"]
        if (row["phase"] == UPDATE) == (profiled["path"] == "fused")
    }


def _timed(step: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    begun = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - begun


def _trace(step: Callable[[], object], device: torch.device, file: Path) -> None:
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    marks = _marks(device)
    synchronise(device)
    with (
        profile(activities=activities) as profiler,
        listening(lambda name: marks(PHASE_MARK + name)),
        listening_to_ops(lambda call: marks(OP_MARK + call.name)),
        span(STEP),
    ):
        step()
        synchronise(device)
    profiler.export_chrome_trace(str(file))


def _marks(device: torch.device) -> Callable[[str], AbstractContextManager[Any]]:
    """Return what marks a stretch for PyTorch's profiler and, on a GPU, for NVIDIA's."""
    if device.type != "cuda":
        return record_function

    @contextlib.contextmanager
    def both(name: str) -> Iterator[None]:
        with record_function(name), torch.cuda.nvtx.range(name):
            yield

    return both


def _memory_snapshot(step: Callable[[], object], device: torch.device, file: Path) -> Path:
    """Record every allocation of a step."""
    torch.cuda.memory._record_memory_history(max_entries=200_000, device=device)
    try:
        step()
        synchronise(device)
        torch.cuda.memory._dump_snapshot(str(file))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None, device=device)
    return file


def main() -> int:
    """Profile the settings read from stdin as JSON and write one path a line, as it is known: for other processes."""
    for found, _ in profile_step(ProfileSettings(**json.load(sys.stdin))):
        print(json.dumps(asdict(found)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
