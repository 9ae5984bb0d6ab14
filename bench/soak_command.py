"""The command `bench soak`."""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from ..engine.distributed import choose_device
from ..errors import InputError, RunError
from ..json_file import check_writable, write_json
from .commands import JsonFile
from .machine import machine
from .soak import MIB, Soak, SoakSettings, judge, soak
from .soak_plot import soak_plot


def soak_command(
    *,
    minutes: float = 60.0,
    warm_up_minutes: float = 10.0,
    steps: int = 120,
    train_clips: int = 2000,
    test_clips: int = 60,
    sample_seconds: float = 2.0,
    limit_mib_per_hour: float = 32.0,
    device: str = "auto",
    json_file: JsonFile = None,
) -> int:
    """Run the demo again and again in one process, and see whether its memory and open files stay as many.

    A round trains both stages, stops each halfway and resumes it, evaluates retrieval, captions and draws. Fails where
    memory grows faster than allowed, or files stay open.

    Args:
        minutes: No round begins after so long.
        warm_up_minutes: Rounds that begin before are not judged.
        steps: Optimiser steps of a stage in a round; of the preset's batches.
        train_clips: Clips of the synthetic corpus to train on.
        test_clips: Clips to evaluate on.
        sample_seconds: Time between two looks at the process.
        limit_mib_per_hour: Growth of resident memory that is allowed.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        json_file: File to write samples, rounds and verdict to as JSON, after every round; a picture (.png) goes beside
            it.
    """
    if json_file is not None:
        check_writable(json_file)
        if json_file.suffix == ".png":
            raise InputError(f"--json is {json_file}; expected another ending, the picture beside it has this one")
    settings = SoakSettings(
        minutes=minutes,
        warm_up_minutes=warm_up_minutes,
        steps=steps,
        train_clips=train_clips,
        test_clips=test_clips,
        sample_seconds=sample_seconds,
        limit_mib_per_hour=limit_mib_per_hour,
        device=str(choose_device(device)),
    )
    settings.check()
    about = machine(choose_device(device))

    def record(measured: Soak, verdict: dict[str, object] | None = None) -> None:
        latest = measured.rounds[-1]
        print(
            f"round {len(measured.rounds)}, {latest.seconds / 60:.1f} min: {latest.resident_bytes / MIB:.0f} MiB, "
            f"{latest.descriptors} file descriptors",
            file=sys.stderr,
        )
        if json_file is not None:
            figures = {"machine": about, "settings": asdict(settings), "verdict": verdict} | asdict(measured)
            write_json(json_file, figures)

    with tempfile.TemporaryDirectory(prefix="cacophony-soak-") as directory:
        measured = soak(settings, Path(directory), record)
    verdict = judge(measured.rounds, settings)
    record(measured, asdict(verdict))
    said = (
        f"{verdict.rounds} rounds after {warm_up_minutes:g} min: {verdict.resident_mib:.0f} MiB resident, "
        f"{verdict.mib_per_hour:+.1f} MiB an hour (limit {limit_mib_per_hour:g}); {verdict.descriptors} file "
        f"descriptors, {verdict.more_descriptors} more than before"
    )
    if json_file is not None:
        title = f"demo again and again: {verdict.mib_per_hour:+.1f} MiB an hour, {verdict.more_descriptors:+d} files"
        soak_plot(json_file.with_suffix(".png"), measured, warm_up_minutes, title)
    print(f"{said}: {'memory and files stay' if not verdict.problems else 'THEY GROW'}")
    if verdict.problems:
        raise RunError("; ".join(verdict.problems))
    return 0
