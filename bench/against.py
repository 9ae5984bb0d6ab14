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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, RunError
from .child import run_module
from .from_checkout import ROOT
from .harness import PASSES
from .kernels import KernelSettings


def compare_with(base: str, settings: KernelSettings) -> list[dict[str, Any]]:
    """Bench ``settings`` here and at git ref ``base``, a process for each round of each; one row a provider and pass.

    A row has the medians over rounds of both sides in milliseconds and their ratio (over 1: this checkout is faster),
    or the reason why a side has none. Raises InputError where there is no such ref, RunError where a side cannot run.
    """
    settings.check()
    one_round = replace(settings, rounds=1)
    times: dict[str, list[dict[tuple[str, ...], Any]]] = {"here": [], "base": []}
    with tempfile.TemporaryDirectory(prefix="cacophony-base-") as folder:
        tree = _check_out(base, Path(folder))
        for _ in range(settings.rounds):
            for side, root in (("here", ROOT), ("base", tree)):
                times[side].append(_times(run_kernels(root, one_round)))
    rows = []
    for key in {key: None for side in ("here", "base") for key in times[side][0]}:
        row: dict[str, Any] = dict(zip(("op", "case", "dtype", "provider", "pass"), key, strict=True))
        for side, rounds in times.items():
            found = [one.get(key, "no such case or pass") for one in rounds]
            reasons = [value for value in found if isinstance(value, str)]
            row[side] = reasons[0] if reasons else float(np.median(found))
        timed = not isinstance(row["here"], str) and not isinstance(row["base"], str)
        rows.append(row | {"base_over_here": row["base"] / row["here"] if timed else None})
    return rows


def run_kernels(root: Path, settings: KernelSettings) -> list[dict[str, Any]]:
    """Return the rows that the checkout at ``root`` gives for ``settings``, run in a process of its own."""
    asked = json.dumps({"settings": asdict(settings), "roofs": None})
    done = run_module("cacophony.bench.kernels", stdin=asked, root=root)
    if done.returncode:
        raise RunError(f"{root}: the bench failed: {done.complaint}")
    return [json.loads(line) for line in done.lines]


def format_comparison(base: str, rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [f"{'op, case, dtype, provider, pass':70} {'here ms':>9} {base[:12]:>12} {'ratio':>6}"]
    for row in rows:
        name = ", ".join(row[key] for key in ("op", "case", "dtype", "provider", "pass"))
        if row["base_over_here"] is None:
            side, reason = next((side, row[side]) for side in ("here", "base") if isinstance(row[side], str))
            lines.append(f"{name:70} {side}: {reason}")
        else:
            lines.append(f"{name:70} {row['here']:9.4f} {row['base']:12.4f} {row['base_over_here']:6.2f}")
    return "\n".join(lines)


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


def _times(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], Any]:
    """Return median milliseconds, or the reason for none, by op, case, dtype, provider and pass."""
    found: dict[tuple[str, ...], Any] = {}
    for row in rows:
        for name in PASSES:
            key = (row["op"], row["case"], row["dtype"], row["provider"], name)
            if row["reason"]:
                found[key] = row["reason"]
            elif name in row["passes"]:
                found[key] = row["passes"][name]["timing"]["ms_p50"]
    return found
