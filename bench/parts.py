"""The parts of the whole bench, each in a process of its own, for the time it is given."""

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from ..engine.config import Stage
from .block_stack import TIMED
from .blocks import CUT as BLOCKS_CUT
from .blocks import BlockSettings
from .child import Finished, run_module
from .data_demand import data_figures
from .from_checkout import ROOT
from .kernels import CUT, KernelSettings, planned
from .steps import StepSettings
from .training_step import Variant
from .update import CUT as UPDATES_CUT
from .update import UpdateSettings

Status = Literal["ok", "failed", "cut", "skipped"]

_DATA_NEEDS = ("soundfile", "soxr", "numba", "tokenizers", "rich")

_OWN_SHARE = 0.8  # of its time after which a part starts nothing more; the rest is for what is under way


@dataclass(frozen=True)
class Outcome:
    """How a part ended, why where it did not end well, and its figures as they stand in the JSON file."""

    status: Status
    reason: str | None = None
    figures: Any = field(repr=False, default=None)


@dataclass(frozen=True)
class Plan:
    """What the whole bench does on a device."""

    device: str
    quick: bool
    kernels: KernelSettings
    blocks: BlockSettings
    steps: StepSettings
    updates: UpdateSettings

    @classmethod
    def of(cls, device: torch.device, quick: bool) -> "Plan":
        """Return the plan for ``device``: the paper's shapes on a GPU; small ones, plain PyTorch alone, on a CPU."""
        on_gpu = device.type == "cuda"
        providers = ["fused", "reference"] if on_gpu and quick else [] if on_gpu else ["reference"]
        plain = variants = [Variant("reference", "padded"), Variant("reference", "packed")]
        if on_gpu:
            variants = [Variant("fused", "packed"), Variant("sdpa", "padded")]
            variants += [] if quick else [Variant("compile", "padded"), *plain]
        kernels = KernelSettings(device=str(device), providers=providers, seconds=0.05 if on_gpu else 0.005)
        blocks = BlockSettings(
            size="paper" if on_gpu else "demo",
            tokens=65536 if on_gpu else 1024,
            layers=(1, 12) if on_gpu and not quick else (1,),
            providers=("stash10", "stash3", "sdpa") if quick or not on_gpu else TIMED,
            precision="bf16" if on_gpu else "fp32",
            device=str(device),
            seconds=0.1 if on_gpu else 0.005,
        )
        steps = StepSettings(
            size="paper" if on_gpu else "demo",
            clips=64 if on_gpu else 2,
            rounds=10 if on_gpu else 2,
            precision="bf16" if on_gpu else "fp32",
            variants=variants,
            device=str(device),
        )
        updates = UpdateSettings(device=str(device), lengths=("realistic",), providers=("fused", "gradcache"), rounds=1)
        if on_gpu and not quick:
            updates = UpdateSettings(device=str(device))
        if not on_gpu:
            updates = replace(updates, preset="demo", clips=8, micro_batch_size=4, precision="fp32")
        return cls(str(device), quick, kernels, blocks, steps, updates)


def run_roofs(plan: Plan, seconds: float) -> Outcome:
    """Measure the roofs."""
    asked = {"device": plan.device, "seconds": 0.3 if plan.device.startswith("cuda") else 0.02}
    done = run_module("cacophony.bench.roofline", stdin=json.dumps(asked), seconds=seconds)
    return _outcome(done, next(iter(done.rows), None))


def run_tests(plan: Plan, seconds: float) -> Outcome:
    """Run the tests of the ops on the GPU; the quick bench those of every SPEC alone."""
    if not plan.device.startswith("cuda"):
        return Outcome("skipped", "no GPU: the test suite itself runs the kernels in Triton's interpreter")
    tests = ROOT / "tests" / "kernels"
    if not tests.is_dir():
        return Outcome("skipped", "this installation has no tests; run the bench from a checkout")
    chosen = tests / "test_specs.py" if plan.quick else tests
    options = ["-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", str(chosen)]
    # Warnings are errors, and those of other packages' plugins would be too.
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = run_module("pytest", options, seconds=seconds, environment=alone)
    broken = [line for line in done.lines if line.startswith(("FAILED", "ERROR"))]
    summary = done.lines[-1] if done.lines else done.complaint
    outcome = _outcome(done, {"summary": summary, "broken": broken})
    return replace(outcome, reason=summary) if outcome.status == "failed" else outcome


def run_kernels(plan: Plan, seconds: float, roofs: Any) -> Outcome:
    """Time every op; a case that takes the process with it is named, and another process goes on after it."""
    return time_kernels(plan.kernels, roofs, seconds)


def time_kernels(
    settings: KernelSettings, roofs: Any, seconds: float, run: Callable[..., Finished] = run_module
) -> Outcome:
    """Time the cases of ``settings`` in as many processes as it takes; two in a row without a figure end it."""
    until = time.monotonic() + seconds
    rows: list[dict[str, Any]] = []
    lost: list[str] = []
    skip: set[tuple[str, ...]] = set()
    fruitless = 0
    while True:
        left = replace(settings, skip=sorted(skip), part_seconds=_OWN_SHARE * (until - time.monotonic()))
        names = [(spec.name, case.name, dtype) for spec, case, dtype in planned(left)]
        if not names:
            break
        asked = json.dumps({"settings": asdict(left), "roofs": roofs})
        done = run("cacophony.bench.kernels", stdin=asked, seconds=max(until - time.monotonic(), 0.0))
        found = done.rows
        rows += found
        if done.returncode is None:
            return Outcome("cut", "its time was over", rows)
        if done.returncode == 0:
            break
        skip |= {(row["op"], row["case"], row["dtype"]) for row in found}
        culprit = next(name for name in names if name not in skip)
        skip.add(culprit)
        lost.append(f"{', '.join(culprit)}: {done.complaint}")
        fruitless = 0 if found else fruitless + 1
        if fruitless == 2:
            break
    if lost:
        return Outcome("failed", "; ".join(lost), rows)
    cut = any(row["reason"] == CUT for row in rows)
    return Outcome("cut", "its time was over", rows) if cut else Outcome("ok", None, rows)


def run_blocks(plan: Plan, seconds: float, roofs: Any) -> Outcome:
    """Time a block and a whole stack in every way."""
    settings = replace(plan.blocks, part_seconds=_OWN_SHARE * seconds)
    asked = json.dumps({"settings": asdict(settings), "roofs": roofs})
    done = run_module("cacophony.bench.blocks", stdin=asked, seconds=seconds)
    outcome = _outcome(done, done.rows)
    cut = outcome.status == "ok" and any(row["reason"] == BLOCKS_CUT for row in done.rows)
    return Outcome("cut", "its time was over", done.rows) if cut else outcome


def run_steps(plan: Plan, seconds: float, stage: Stage) -> Outcome:
    """Time a stage's step on every variant."""
    settings = replace(plan.steps, stages=[stage], stage_seconds=_OWN_SHARE * seconds)
    done = run_module("cacophony.bench.steps", stdin=json.dumps(asdict(settings)), seconds=seconds)
    return _outcome(done, done.rows)


def run_data(plan: Plan, seconds: float) -> Outcome:
    """Measure loaders and their stages."""
    missing = [name for name in _DATA_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        return Outcome("skipped", f"loading needs packages that are not installed: {', '.join(missing)}")
    small = plan.quick or not plan.device.startswith("cuda")
    settings = {"device": plan.device, "clips": 32 if small else 256, "seconds": 0.5 if small else 3.0}
    settings["workers"] = min(os.cpu_count() or 1, 2 if small else 8)
    with tempfile.TemporaryDirectory() as folder:
        asked = json.dumps({"settings": settings, "folder": folder})
        done = run_module("cacophony.bench.data", stdin=asked, seconds=seconds)
    return _outcome(done, data_figures(done.rows))


def run_updates(plan: Plan, seconds: float, roofs: Any) -> Outcome:
    """Time stage 2's whole update in every way."""
    settings = replace(plan.updates, part_seconds=_OWN_SHARE * seconds)
    asked = json.dumps({"settings": asdict(settings), "roofs": roofs})
    done = run_module("cacophony.bench.update", stdin=asked, seconds=seconds)
    outcome = _outcome(done, done.rows)
    cut = outcome.status == "ok" and any(row["reason"] == UPDATES_CUT for row in done.rows)
    return Outcome("cut", "its time was over", done.rows) if cut else outcome


def _outcome(done: Finished, figures: Any) -> Outcome:
    if done.returncode is None:
        return Outcome("cut", "its time was over", figures)
    if done.returncode:
        return Outcome("failed", done.complaint, figures)
    return Outcome("ok", None, figures)
