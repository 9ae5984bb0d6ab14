"""The commands about evidence: bench kernels, blocks, steps, packing, all, report, compile."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ..engine.config import Precision
from ..engine.distributed import choose_device
from ..engine.inference import BATCH_SIZE
from ..errors import InputError, RunError
from ..json_file import check_writable, read_json, write_json
from ..kernels.backend import Backend
from ..kernels.layout import LayoutName
from ..models.config import AUDIO_TEXT_SIZES
from .against import compare_with, comparison_table
from .all import bench_all
from .block_stack import SEQUENCES, TIMED, BlockProvider
from .blocks import BlockSettings, bench_blocks
from .compile_gate import ARCHITECTURES, INFORMATIVE_ARCHITECTURE, compile_kernels, markdown_table, problems
from .embedding import bench_embedding
from .kernels import KernelSettings, bench_kernels
from .machine import machine
from .packing import bench_packing
from .report import write_report
from .roofline import Roofs, measure_roofs
from .steps import StepSettings, bench_steps, step_ratios
from .tables import block_table, kernel_table, roof_line, step_table
from .training_step import StepProvider, Variant

JsonFile = Annotated[Path | None, tyro.conf.arg(name="json")]


def steps_command(
    *,
    size: Literal["demo", "ablation", "paper"] = "demo",
    clips: int = 16,
    rounds: int = 10,
    provider: tuple[StepProvider, ...] = ("reference",),
    layout: tuple[LayoutName, ...] = ("packed", "padded"),
    precision: Precision = "fp32",
    device: str = "auto",
    json_file: JsonFile = None,
) -> int:
    """Time an optimiser step of both stages on noise of ragged lengths, stage 2 with SAM.

    Args:
        size: Networks to time.
        clips: Clips of a step, in one micro-batch.
        rounds: Steps timed for each stage, provider and layout.
        provider: reference, plain PyTorch as specified; sdpa, the same with PyTorch's scaled_dot_product_attention, its
            dropout a mask of its own; compile, that through torch.compile; fused, the fused ops.
        layout: Packed tokens, or padded ones.
        precision: Precision of the forward and backward pass.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        json_file: File to write the same figures to as JSON, with device and versions.
    """
    if json_file is not None:
        check_writable(json_file)
    chosen = choose_device(device)
    settings = StepSettings(
        size=size,
        clips=clips,
        rounds=rounds,
        precision=precision,
        variants=[Variant(name, layout_name) for name in provider for layout_name in layout],
        device=str(chosen),
    )
    rows = [asdict(row) for row in bench_steps(settings)]
    ratios = step_ratios(rows)
    print(step_table(rows))
    for stage, found in ratios.items():
        for name, ratio in found.items():
            slow, _, fast = name.partition("_over_")
            print(f"{stage}: {slow} takes {ratio:.2f} times as long as {fast}")
    finish(json_file, chosen, {"settings": asdict(settings), "steps": rows, "step_ratios": ratios})
    return 0


def kernels_command(
    *,
    op: tuple[str, ...] = (),
    case: tuple[str, ...] = (),
    provider: tuple[str, ...] = (),
    dtype: tuple[str, ...] = ("bfloat16",),
    rounds: int = 2,
    seconds: float = 0.1,
    device: str = "auto",
    base: str | None = None,
    json_file: JsonFile = None,
) -> int:
    """Time every op forward, backward and both; what is wrong is refused a time.

    Args:
        op: Ops to time; all where none is named.
        case: Cases of their SPEC; where none is named the paper's shapes on a GPU, the small ones elsewhere.
        provider: fused, reference, compile or a rival; where none is named all, Triton's kernels on a GPU only.
            With --base fused on a GPU, reference elsewhere.
        dtype: bfloat16, float32.
        rounds: Turns of each provider, or of each side with --base.
        seconds: Time of a turn for each pass.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        base: Git ref to compare with: its ops are timed by this checkout's bench, in turns with this checkout's.
        json_file: File to write the same figures to as JSON, with device and versions.
    """
    if json_file is not None:
        check_writable(json_file)
    chosen = choose_device(device)
    settings = KernelSettings(
        ops=op, cases=case, providers=provider, dtypes=dtype, device=str(chosen), rounds=rounds, seconds=seconds
    )
    settings.check()
    if base is not None:
        ours = ("fused",) if chosen.type == "cuda" else ("reference",)
        compared = compare_with(base, replace(settings, providers=provider or ours))
        print(comparison_table(base, compared))
        rows = [asdict(one) | {"base_over_here": one.base_over_here} for one in compared]
        finish(json_file, chosen, {"settings": asdict(settings), "base": base, "comparisons": rows})
        return 0
    roofs = measure_roofs(chosen, seconds=seconds)
    rows = [asdict(row) for row in bench_kernels(settings, roofs)]
    print(kernel_table(rows))
    print(f"roofs: {roof_line(asdict(roofs))}")
    finish(json_file, chosen, {"settings": asdict(settings), "roofs": asdict(roofs), "kernels": rows})
    return 0


def blocks_command(
    *,
    size: Literal["demo", "ablation", "paper"] = "paper",
    tokens: int = 65536,
    layers: tuple[int, ...] = (1, 12),
    sequences: tuple[str, ...] = SEQUENCES,
    provider: tuple[BlockProvider, ...] = TIMED,
    precision: Precision = "bf16",
    rounds: int = 2,
    seconds: float = 0.2,
    device: str = "auto",
    json_file: JsonFile = None,
) -> int:
    """Time transformer blocks forward, backward and both; what is wrong is refused a time. Dropout is off.

    Args:
        size: Networks whose blocks are timed.
        tokens: Valid tokens of a call, about; the default is a GPU's.
        layers: Blocks in a row.
        sequences: Kinds of sequences: S = 150, S = 512 and S = 750 for audio, captions (ragged, 6 to 30 tokens).
        provider: By hand on packed tokens, keeping everything (stash10) or little (stash3), and with xFormers'
            attention; by hand on padded tokens; sdpa, autograd on padded tokens with PyTorch's
            scaled_dot_product_attention; compile, that through torch.compile; reference, plain PyTorch as specified.
        precision: Precision of tokens and products; parameters are float32.
        rounds: Turns of each provider.
        seconds: Time of a turn for each pass.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        json_file: File to write the same figures to as JSON, with device and versions.
    """
    if json_file is not None:
        check_writable(json_file)
    chosen = choose_device(device)
    settings = BlockSettings(
        size=size,
        tokens=tokens,
        layers=layers,
        sequences=sequences,
        providers=provider,
        precision=precision,
        device=str(chosen),
        rounds=rounds,
        seconds=seconds,
    )
    settings.check()
    roofs = asdict(measure_roofs(chosen, seconds=seconds))
    rows = [asdict(row) for row in bench_blocks(settings, Roofs(**roofs))]
    print(block_table(rows))
    print(f"roofs: {roof_line(roofs)}")
    finish(json_file, chosen, {"settings": asdict(settings), "roofs": roofs, "blocks": rows})
    return 0


def packing_command(
    *,
    size: Literal["demo", "ablation", "paper"] = "paper",
    layers: int = 2,
    clips: int = 16,
    rounds: int = 3,
    backend: Backend = "reference",
    device: str = "auto",
    json_file: JsonFile = None,
) -> int:
    """Time both towers, forward + backward, on packed tokens against padded ones.

    Captions of 6 to 30 tokens (mean 18) in 77 slots; clips of which 40 % fill their 512 patches.

    Args:
        size: Networks to time.
        layers: Blocks of each tower; the ratio hardly depends on it.
        clips: Sequences of each kind.
        rounds: Turns of each layout.
        backend: reference, fused, or auto.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        json_file: File to write the same figures to as JSON, with device and versions.
    """
    for name, value in (("--layers", layers), ("--clips", clips), ("--rounds", rounds)):
        if value < 1:
            raise InputError(f"{name} is {value}; expected at least 1")
    if json_file is not None:
        check_writable(json_file)
    chosen, config = choose_device(device), AUDIO_TEXT_SIZES[size]
    config = replace(config, audio=replace(config.audio, layers=layers), text=replace(config.text, layers=layers))
    figures = bench_packing(config, clips, rounds, chosen, backend)
    for tower, found in figures.items():
        print(
            f"{tower}: padded takes {found.ratio:.2f} times as long as packed "
            f"({found.padded_seconds:.3f} s on {found.padded_tokens} slots, {found.packed_seconds:.3f} s on "
            f"{found.valid_tokens} tokens)"
        )
    settings = {"size": size, "layers": layers, "clips": clips, "rounds": rounds, "backend": backend}
    finish(json_file, chosen, {"settings": settings} | {tower: asdict(found) for tower, found in figures.items()})
    return 0


def embedding_command(
    *,
    size: Literal["demo", "ablation", "paper"] = "paper",
    clips: int = 64,
    seconds: tuple[float, float] = (1.0, 10.0),
    batch_size: int = BATCH_SIZE,
    rounds: int = 3,
    backend: Backend = "auto",
    device: str = "auto",
    json_file: JsonFile = None,
) -> int:
    """Time audio embeddings of noise of ragged lengths in batches by length, against one clip at a time.

    Args:
        size: Networks to time.
        clips: Waves to embed.
        seconds: Shortest and longest wave; lengths are uniform between.
        batch_size: Most clips through the model at once; of long ones fewer are.
        rounds: Turns of each way.
        backend: reference, fused, or auto.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
        json_file: File to write the same figures to as JSON, with device and versions.
    """
    for name, value in (("--clips", clips), ("--batch-size", batch_size), ("--rounds", rounds)):
        if value < 1:
            raise InputError(f"{name} is {value}; expected at least 1")
    if not 0 < seconds[0] <= seconds[1] <= 300:
        raise InputError(
            f"--seconds is {seconds[0]:g} {seconds[1]:g}; expected two numbers, 0 < first <= second <= 300"
        )
    if json_file is not None:
        check_writable(json_file)
    chosen = choose_device(device)
    found = bench_embedding(AUDIO_TEXT_SIZES[size], clips, seconds, batch_size, rounds, chosen, backend)
    print(
        f"one by one takes {found.ratio:.2f} times as long as up to {batch_size} at once "
        f"({found.one_by_one_seconds:.3f} s, {found.batched_seconds:.3f} s for {found.audio_seconds:.0f} s of audio); "
        f"embeddings differ by at most {found.largest_difference:.1e}"
    )
    settings = {"size": size, "clips": clips, "seconds": seconds, "batch_size": batch_size, "rounds": rounds}
    finish(json_file, chosen, {"settings": settings | {"backend": backend}, "embedding": asdict(found)})
    return 0


def all_command(
    *, json_file: Annotated[Path, tyro.conf.arg(name="json")], quick: bool = False, device: str = "auto"
) -> int:
    """Test the ops on the GPU, then measure roofs, ops and steps of both stages, within ten minutes.

    Args:
        json_file: File to write; a table (.md) and a picture (.png) go beside it.
        quick: Less of everything, within two minutes.
        device: cpu, cuda, ...; auto takes a GPU where there is one.
    """
    return bench_all(json_file, quick=quick, device=device)


def report_command(json_file: tyro.conf.Positional[Path], /) -> int:
    """Write the table (.md) and the picture (.png) of a file that `cacophony bench all` wrote, beside it.

    Args:
        json_file: The file.
    """
    figures = read_json(json_file)
    try:
        page, picture = write_report(json_file, figures)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{json_file}: was not written by `cacophony bench all` ({error!r})") from None
    print(f"{page}\n{picture}")
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


def finish(json_file: Path | None, device: torch.device, figures: dict[str, Any]) -> None:
    """Say on which machine the figures were measured and write them, if a file was asked for."""
    about = machine(device)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    print(f"on {about['device']}, {about['threads']} threads, {versions}", file=sys.stderr)
    if json_file is not None:
        write_json(json_file, {"machine": about} | figures)
