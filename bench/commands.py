"""The commands about evidence: bench steps, bench compile."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..engine.commands import check_writable
from ..engine.distributed import choose_device
from ..errors import InputError, RunError
from ..json_file import write_json
from .compile_gate import ARCHITECTURES, INFORMATIVE_ARCHITECTURE, compile_kernels, markdown_table, problems
from .steps import bench_steps, format_table, report


def steps_command(
    *,
    size: Literal["demo", "ablation", "paper"] = "demo",
    clips: int = 16,
    rounds: int = 10,
    device: str = "auto",
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Time an optimiser step of both stages, packed against padded, on noise of ragged lengths.

    Args:
        size: Networks to time.
        clips: Clips of a step, in one micro-batch.
        rounds: Steps timed for each stage and layout.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        json_file: File to write the same figures to as JSON, with device and versions.
    """
    for name, value in (("--clips", clips), ("--rounds", rounds)):
        if value < 1:
            raise InputError(f"{name} is {value}; expected at least 1")
    if json_file is not None:
        check_writable(json_file)
    chosen = choose_device(device)
    timings = bench_steps(size, clips, rounds, chosen)
    figures = report(timings, chosen, {"size": size, "clips": clips, "rounds": rounds})
    print(format_table(timings))
    for stage, ratio in figures["padded_over_packed"].items():
        print(f"{stage}: padded takes {ratio:.2f} times as long as packed")
    print(f"on {figures['device']}, {figures['threads']} threads, {figures['versions']}", file=sys.stderr)
    if json_file is not None:
        write_json(json_file, figures)
    return 0


def compile_command(
    *,
    arch: tuple[int, ...] = (*ARCHITECTURES, INFORMATIVE_ARCHITECTURE),
    out: Path | None = None,
) -> int:
    """Compile every Triton kernel at the paper's shapes; needs no GPU. Fails on a spill or unused tensor cores.

    Args:
        arch: GPU architectures as numbers, 90 is sm_90; on 100 nothing fails.
        out: File to write the table to.
    """
    if out is not None:
        check_writable(out)
    kernels = compile_kernels(arch)
    table = markdown_table(kernels)
    print(table)
    if out is not None:
        out.write_text(table)
    found = problems(kernels)
    if found:
        raise RunError("; ".join(found))
    return 0
