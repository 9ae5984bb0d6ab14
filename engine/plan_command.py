"""The command `plan`: will it fit, how long will it take, what to change; on any machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import InputError
from ..json_file import check_writable, write_json
from ..kernels.log_mel import SAMPLE_RATE, num_patches
from ..models.by_hand import Stash
from .config import Stage
from .gpus import GIB, gpu_named
from .plan import BANDWIDTH_SHARE, EFFICIENCY, MEAN_TEXT_TOKENS, Machine, Plan, Planner, nearest_that_fits
from .presets import PRESETS, preset
from .step_cost import GPUS_PER_NODE, RunConfigOfStage, gradients_per_step
from .step_memory import ClipSize

MOST_GPUS = 1024
_SWEEP_GPUS = (1, 2, 4, 8, 16, 64, 256, 1024)
_SWEEP_BATCHES = (4096, 16_384, 65_536, 262_144)


def plan_command(
    *,
    preset_name: Annotated[str, tyro.conf.arg(name="preset")] = "paper_stage2",
    gpu: str = "h100-80gb",
    gpus: int = 1,
    batch: int | None = None,
    stash: Stash | None = None,
    micro_batch_size: int | None = None,
    seconds: float = 10.24,
    text_tokens: int = MEAN_TEXT_TOKENS,
    efficiency: float = EFFICIENCY,
    sweep: bool = False,
    out: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Plan a run without a GPU: memory by part, FLOPs, what ranks send each other, time of a step and of the run.

    Args:
        preset_name: Run to plan.
        gpu: a100-40gb, a100-80gb, h100-80gb, h200-141gb, b200, or a memory size such as '24 GiB'.
        gpus: GPUs of the run, 1 to 1024, eight a node.
        batch: Clips of an optimiser step; the preset's unless given.
        stash: What a micro-batch's forward keeps (objective.stash); the largest that fits unless given.
        micro_batch_size: Clips of a forward pass; the largest that fits, or that is of use, unless given.
        seconds: Mean length of a clip, cropped.
        text_tokens: Mean length of a caption, <s> and </s> included.
        efficiency: Share of the bf16 peak that is reached; an assumption.
        sweep: Plan 1 to 1024 GPUs and batches of 4096 to 262144 instead: a table.
        out: Markdown file to write the sweep's table to, instead of printing it.
        json_file: File to write the plan to as JSON.
    """
    config = _config(preset_name)
    if not 1 <= gpus <= MOST_GPUS:
        raise InputError(f"--gpus is {gpus}; expected 1 to {MOST_GPUS}")
    if not 0.0 < efficiency <= 1.0:
        raise InputError(f"--efficiency is {efficiency}; expected a share of the peak, more than 0 and at most 1")
    for file in (out, json_file):
        if file is not None:
            check_writable(file)
    machine = Machine(gpu=gpu_named(gpu), gpus=gpus, clip=_clip(seconds, text_tokens), efficiency=efficiency)
    if sweep:
        return _sweep(preset_name, config, machine, out)
    if out is not None:
        raise InputError("--out goes with --sweep; use --json for one plan")
    if batch is not None:
        config = replace(config, batch_size=batch)
    planner = Planner(config, machine)
    plan = planner.best(stash, micro_batch_size) or planner.smallest(stash, micro_batch_size)
    print("\n".join(_describe(preset_name, plan)))
    if not plan.fits:
        print(_nearest(config, machine))
    if json_file is not None:
        write_json(json_file, as_json(plan))
    return 0 if plan.fits else 1


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the figures of a plan, bytes and seconds, ready for a JSON file."""
    machine = plan.machine
    return {
        "gpu": machine.gpu.name,
        "gpus": machine.gpus,
        "batch_size": plan.config.batch_size,
        "micro_batch_size": plan.config.micro_batch_size,
        "stash": plan.config.objective.stash,
        "patches": machine.clip.patches,
        "text_tokens": machine.clip.text_tokens,
        "parameters": plan.parameters,
        "fits": plan.fits,
        "bytes": plan.bytes,
        "gpu_bytes": machine.gpu.memory_bytes,
        "parts": plan.parts,
        "model_flops": gradients_per_step(plan.config) * plan.flops.model,
        "recomputed_share": plan.flops.recomputed_share,
        "transfers": {transfer.name: transfer.bytes for transfer in plan.transfers},
        "assumed_efficiency": machine.efficiency,
        "seconds": {
            "compute": plan.compute_seconds,
            "update": plan.update_seconds,
            "transfers": plan.transfer_seconds,
            "exposed_transfers": plan.exposed_seconds,
            "step": plan.step_seconds,
        },
        "steps": plan.config.steps,
        "days": plan.days,
    }


def _config(name: str) -> RunConfigOfStage:
    stage: Stage = "mae" if name in PRESETS["mae"] and name not in PRESETS["contrastive"] else "contrastive"
    return preset(stage, name)


def _clip(seconds: float, text_tokens: int) -> ClipSize:
    patches = num_patches(round(seconds * SAMPLE_RATE)) if 0.0 < seconds <= 3600.0 else 0
    if not patches:
        raise InputError(f"--seconds is {seconds}; expected at least 0.16 (one patch) and at most 3600")
    if text_tokens < 2:
        raise InputError(f"--text-tokens is {text_tokens}; expected at least 2, <s> and </s>")
    return ClipSize(patches, text_tokens)


def _describe(name: str, plan: Plan) -> list[str]:
    machine, config, capacity = plan.machine, plan.config, plan.machine.gpu.memory_bytes
    nodes = -(-machine.gpus // GPUS_PER_NODE)
    verdict = "fits" if plan.fits else "does not fit"
    times = gradients_per_step(config)
    lines = [
        f"{name} on {machine.gpus} x {machine.gpu.name} ({nodes} node{'s' if nodes > 1 else ''}): batch "
        f"{config.batch_size}, clips of {machine.clip.patches} patches, captions of {machine.clip.text_tokens} tokens",
        f"stash {config.objective.stash}, micro-batches of {config.micro_batch_size} clips: {verdict}, "
        f"{plan.bytes / GIB:.1f} of {capacity / GIB:.0f} GiB",
        *(f"  {part:28} {size / GIB:8.2f} GiB" for part, size in plan.parts.items()),
        f"model FLOPs of a step and GPU  {times * plan.flops.model / 1e12:8.1f} TFLOP in {times} "
        f"gradient{'s' if times > 1 else ''}, {plan.flops.recomputed_share:.1%} on top to recompute",
        *(f"  sends {transfer.name:32} {transfer.bytes / 1e9:8.2f} GB" for transfer in plan.transfers),
        f"a step takes {plan.step_seconds:.3g} s ({plan.compute_seconds:.3g} compute, {plan.update_seconds:.2g} "
        f"update, {plan.exposed_seconds:.2g} waiting for {plan.transfer_seconds:.2g} of transfers), the run "
        f"{plan.days:.3g} days, if {machine.efficiency:.0%} of the bf16 peak and {BANDWIDTH_SHARE:.0%} of bandwidth "
        "are reached: an assumption, not measured",
    ]
    if plan.fits:
        lines.append(f"flags: --objective.stash {config.objective.stash} --micro-batch-size {config.micro_batch_size}")
    return lines


def _nearest(config: RunConfigOfStage, machine: Machine) -> str:
    whole = Planner(config, machine).best()
    found = whole or nearest_that_fits(config, machine)
    if found is None:
        return "no batch fits this GPU: take one with more memory, or a smaller network"
    chosen = found.config
    return (
        f"nearest plan that fits: batch {chosen.batch_size}, stash {chosen.objective.stash}, micro-batches of "
        f"{chosen.micro_batch_size} clips, {found.bytes / GIB:.1f} GiB"
    )


def _sweep(name: str, config: RunConfigOfStage, machine: Machine, out: Path | None) -> int:
    columns = ("GPUs", "batch", "stash", "micro-batch", "GiB a GPU", "recomputed", "sent GB", "step s", "clips/s")
    rows: list[Sequence[str]] = []
    for gpus in _SWEEP_GPUS:
        for batch in _SWEEP_BATCHES:
            there = replace(machine, gpus=gpus)
            plan = Planner(replace(config, batch_size=batch), there).best()
            rows.append((str(gpus), str(batch), *(_figures(plan) if plan else ("does not fit", *[""] * 6))))
    text = "\n".join(
        [
            f"# Plans of {name} on {machine.gpu.name}",
            "",
            f"Made by `cacophony plan --preset {name} --gpu {machine.gpu.name} --sweep`. Clips of "
            f"{machine.clip.patches} patches, captions of {machine.clip.text_tokens} tokens. Times are predictions "
            f"from {machine.efficiency:.0%} of the bf16 peak and {BANDWIDTH_SHARE:.0%} of bandwidth, assumed, "
            "not measured; gradients are summed while the last micro-batch's backward pass goes on.",
            "",
            f"| {' | '.join(columns)} |",
            f"|{'---|' * len(columns)}",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
        print(f"{out}: {len(rows)} plans")
    return 0


def _figures(plan: Plan) -> Sequence[str]:
    return (
        str(plan.config.objective.stash),
        str(plan.config.micro_batch_size),
        f"{plan.bytes / GIB:.1f}",
        f"{plan.flops.recomputed_share:.1%}",
        f"{sum(transfer.bytes for transfer in plan.transfers) / 1e9:.2f}",
        f"{plan.step_seconds:.3g}",
        f"{plan.config.batch_size / plan.step_seconds:.0f}",
    )
