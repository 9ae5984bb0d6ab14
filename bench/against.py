"""The same kernels at another commit: its tree beside this one, this bench over it, both timed in turns.

What is compared is the ops; the bench is this checkout's on both sides. Needs git.
"""

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, RunError
from .child import run_module
from .from_checkout import ROOT
from .harness import PASSES
from .kernels import KernelSettings
from .tables import table

_Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Comparison:
    """One pass of one provider here and there: medians over rounds, or the ``reason`` why a side has none."""

    op: str
    case: str
    dtype: str
    provider: str
    pass_: str
    here_ms: float | None
    base_ms: float | None
    reason: str | None

    @property
    def base_over_here(self) -> float | None:
        """How many times as long the base takes; None where a side has no time."""
        return self.base_ms / self.here_ms if self.base_ms is not None and self.here_ms is not None else None


def compare_with(base: str, settings: KernelSettings) -> list[Comparison]:
    """Bench ``settings`` here and at git ref ``base``, a process for each round of each side, in turns.

    Raises InputError where there is no such ref, RunError where a side cannot run.
    """
    one_round = replace(settings, rounds=1)
    here: list[dict[_Key, float | str]] = []
    there: list[dict[_Key, float | str]] = []
    with tempfile.TemporaryDirectory(prefix="cacophony-base-") as folder:
        tree = _check_out(base, Path(folder))
        for _ in range(settings.rounds):
            here.append(_times(run_kernels(ROOT, one_round)))
            there.append(_times(run_kernels(tree, one_round)))
    comparisons = []
    for key in {**here[0], **there[0]}:
        here_ms, here_reason = _median([times.get(key) for times in here])
        base_ms, base_reason = _median([times.get(key) for times in there])
        reasons = [f"{side}: {text}" for side, text in (("here", here_reason), ("base", base_reason)) if text]
        comparisons.append(Comparison(*key, here_ms, base_ms, "; ".join(reasons) or None))
    return comparisons


def run_kernels(root: Path, settings: KernelSettings) -> list[dict[str, Any]]:
    """Return the rows that the checkout at ``root`` gives for ``settings``, run in a process of its own."""
    asked = json.dumps({"settings": asdict(settings), "roofs": None})
    done = run_module("cacophony.bench.kernels", stdin=asked, root=root)
    if done.returncode:
        raise RunError(f"{root}: the bench failed: {done.complaint}")
    return done.rows


def comparison_table(base: str, comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a Markdown table; a ratio over 1 says that this checkout is faster."""
    lines = []
    for c in comparisons:
        name = (c.op, c.case, c.dtype, c.provider, c.pass_)
        if c.base_over_here is None:
            lines.append((*name, c.reason or ""))
        else:
            lines.append((*name, f"{c.here_ms:.4f}", f"{c.base_ms:.4f}", f"{c.base_over_here:.2f}"))
    return table(("op", "case", "dtype", "provider", "pass", "ms here", f"ms at {base}", "ratio"), lines)


def _check_out(ref: str, folder: Path) -> Path:
    """Unpack the tree of ``ref`` into ``folder``, this checkout's bench in place of its own."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        raise InputError("--base needs git and a checkout of the repository; clone it, or leave --base out")
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", "--", ref]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        raise InputError(f"--base {ref!r} is no commit, branch or tag of this checkout; `git log --oneline` lists some")
    tree = folder / "tree"
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tree, filter="data")
    shutil.rmtree(tree / "bench", ignore_errors=True)
    shutil.copytree(ROOT / "bench", tree / "bench", ignore=shutil.ignore_patterns("__pycache__", "results"))
    return tree


def _times(rows: Sequence[dict[str, Any]]) -> dict[_Key, float | str]:
    """Return median milliseconds, or the reason for none, by op, case, dtype, provider and pass."""
    found: dict[_Key, float | str] = {}
    for row in rows:
        for name in PASSES:
            key = (row["op"], row["case"], row["dtype"], row["provider"], name)
            if row["reason"]:
                found[key] = row["reason"]
            elif name in row["passes"]:
                found[key] = row["passes"][name]["timing"]["ms_p50"]
    return found


def _median(values: Sequence[float | str | None]) -> tuple[float | None, str | None]:
    """Return the median of one side's rounds, or why there is none."""
    timed = [value for value in values if isinstance(value, float)]
    if len(timed) == len(values):
        return float(np.median(timed)), None
    return None, next((value for value in values if isinstance(value, str)), "has no such op, case or pass")
