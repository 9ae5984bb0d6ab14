"""All there is to measure in one command, within ten minutes: GPU tests, roofs, ops, blocks, steps, updates, data.

Nothing here needs more than torch, Triton, NumPy and pytest. Each part has a share of the time; what it leaves over
falls to those after it. A part that fails or is cut says so, and the rest runs all the same.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..engine.distributed import choose_device
from ..json_file import check_writable, write_json
from .machine import machine
from .parts import Outcome, Plan, run_blocks, run_data, run_kernels, run_roofs, run_steps, run_tests, run_updates
from .report import write_report
from .steps import step_ratios
from .update import update_ratios

BUDGET_S, QUICK_BUDGET_S = 560.0, 110.0  # of ten minutes and two; the rest is for starting and for writing down

_SHARES = {
    "roofs": 0.1,
    "tests": 0.1,
    "kernels": 0.24,
    "blocks": 0.12,
    "steps_mae": 0.08,
    "steps_contrastive": 0.08,
    "updates": 0.22,
    "data": 0.06,
}


def bench_all(json_file: Path, *, quick: bool = False, device: str = "auto") -> int:
    """Run every part and write ``json_file``, a Markdown table and a picture beside it; print a JSON line last.

    Returns 0, or 1 where a part failed. Raises InputError where the device is not there or the file cannot be written.
    """
    check_writable(json_file)
    chosen = choose_device(device)
    plan = Plan.of(chosen, quick)
    outcomes, seconds = _run_parts(plan, QUICK_BUDGET_S if quick else BUDGET_S)
    figures = _figures(plan, chosen, outcomes, seconds)
    write_json(json_file, figures)
    page, picture = write_report(json_file, figures)
    print(page.read_text(encoding="utf-8"))
    summary = {"json": str(json_file), "markdown": str(page), "picture": picture}
    print(json.dumps(summary | {name: figures[name] for name in ("parts", "step_ratios", "update_ratios")}))
    return int(any(outcome.status == "failed" for outcome in outcomes.values()))


def _run_parts(plan: Plan, budget: float) -> tuple[dict[str, Outcome], dict[str, float]]:
    outcomes: dict[str, Outcome] = {}
    seconds: dict[str, float] = {}
    parts: dict[str, Callable[[float], Outcome]] = {
        "roofs": lambda time_: run_roofs(plan, time_),
        "tests": lambda time_: run_tests(plan, time_),
        "kernels": lambda time_: run_kernels(plan, time_, outcomes["roofs"].figures),
        "blocks": lambda time_: run_blocks(plan, time_, outcomes["roofs"].figures),
        "steps_mae": lambda time_: run_steps(plan, time_, "mae"),
        "steps_contrastive": lambda time_: run_steps(plan, time_, "contrastive"),
        "updates": lambda time_: run_updates(plan, time_, outcomes["roofs"].figures),
        "data": lambda time_: run_data(plan, time_),
    }
    started = time.monotonic()
    for name, part in parts.items():
        begun = time.monotonic()
        to_come = sum(_SHARES[other] for other in parts if other not in outcomes)
        try:
            outcomes[name] = part((budget - (begun - started)) * _SHARES[name] / to_come)
        except Exception as error:  # whatever it is, the other parts' figures must not be lost
            outcomes[name] = Outcome("failed", f"{type(error).__name__}: {error}")
        seconds[name] = time.monotonic() - begun
        print(f"{name}: {outcomes[name].status} in {seconds[name]:.0f} s", file=sys.stderr, flush=True)
    return outcomes, seconds


def _figures(
    plan: Plan, device: torch.device, outcomes: Mapping[str, Outcome], seconds: Mapping[str, float]
) -> dict[str, Any]:
    steps = [row for name in ("steps_mae", "steps_contrastive") for row in outcomes[name].figures or ()]
    updates = outcomes["updates"].figures or []
    return {
        "machine": machine(device),
        "settings": asdict(plan),
        "parts": {
            name: {"status": outcome.status, "reason": outcome.reason, "seconds": round(seconds[name], 1)}
            for name, outcome in outcomes.items()
        },
        "tests": outcomes["tests"].figures,
        "roofs": outcomes["roofs"].figures,
        "kernels": outcomes["kernels"].figures or [],
        "blocks": outcomes["blocks"].figures or [],
        "steps": steps,
        "step_ratios": step_ratios(steps),
        "data": outcomes["data"].figures,
        "updates": updates,
        "update_ratios": update_ratios(updates),
    }
