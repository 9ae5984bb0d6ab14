"""The command `profile`: where a step's time goes, plain PyTorch against the fused path."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ..engine.config import Precision, Stage
from ..engine.distributed import choose_device
from ..errors import InputError
from ..json_file import write_json
from .machine import device_name, machine
from .profile import ProfileSettings, profile_step
from .profile_table import profile_table, step_lines
from .roofline import measure_roofs
from .tables import roof_line
from .timeline_plot import draw_timelines


def profile_command(
    *,
    stage: Stage,
    path: str = "reference,fused",
    size: Literal["demo", "ablation", "paper"] = "demo",
    clips: int = 16,
    precision: Precision | None = None,
    rounds: int = 3,
    out: Path = Path("cacophony-profile"),
    device: str = "auto",
) -> int:
    """Profile an optimiser step on noise of ragged lengths, stage 2 with SAM, on the same batch through each path.

    Prints a table by phase and op; writes Chrome traces, on a GPU memory snapshots (for pytorch.org/memory_viz), a
    picture of the timelines, and the figures as JSON.

    Args:
        stage: mae or contrastive.
        path: Paths, with commas between: reference (plain PyTorch, autograd, the update tensor by tensor), fused (what
            the device has fused, blocks by hand, the arena).
        size: Networks to profile.
        clips: Clips of the step, in one micro-batch.
        precision: Of the forward and backward pass; bf16 on a GPU and fp32 elsewhere unless given.
        rounds: Steps timed without the profiler.
        out: Directory to write to; files of the same names are replaced.
        device: cpu, cuda, …; auto takes a GPU where there is one.
    """
    chosen = choose_device(device)
    on_gpu = chosen.type == "cuda"
    paths: Any = tuple(path.split(","))
    settings = ProfileSettings(
        stage=stage,
        paths=paths,
        size=size,
        clips=clips,
        precision=precision or ("bf16" if on_gpu else "fp32"),
        device=str(chosen),
        rounds=rounds,
    )
    settings.check()
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; expected a directory to write to")
    out.mkdir(parents=True, exist_ok=True)
    profiles, traces = [], {}
    for found, trace in profile_step(settings, out):
        profiles.append(asdict(found))
        traces[found.path] = trace
    roofs = asdict(measure_roofs(chosen, seconds=0.1 if on_gpu else 0.02))
    print(profile_table(profiles, roofs, settings.precision))
    print("\n".join([*step_lines(profiles), f"roofs: {roof_line(roofs)}"]))
    picture, figures = out / f"{stage}.timeline.png", out / f"{stage}.json"
    draw_timelines(picture, traces, f"A step of stage {stage} ({size}, {clips} clips) on {device_name(chosen)}")
    about = {"machine": machine(chosen), "settings": asdict(settings), "roofs": roofs, "profiles": profiles}
    write_json(figures, about)
    for file in (*(name for profiled in profiles for name in profiled["files"]), picture, figures):
        print(file)
    if not on_gpu:
        print("memory snapshots: none, only CUDA's allocator takes them", file=sys.stderr)
    return 0
