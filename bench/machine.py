"""Which machine, versions and commit gave a figure."""

import importlib.util
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .from_checkout import ROOT


def machine(device: torch.device) -> dict[str, Any]:
    """Return what a file of figures says of the machine; None for what is not known."""
    return {
        "device": device_name(device),
        "driver": _driver(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": _triton_version(),
            "numpy": np.__version__,
        },
        "commit": commit(ROOT),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, of the processor otherwise."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit(root: Path) -> str | None:
    """Return the commit checked out at ``root``, read without git; None where ``root`` is no checkout."""
    git = root / ".git"
    if git.is_file():
        git = root / git.read_text(encoding="utf-8").partition("gitdir:")[2].strip()
    if not (git / "HEAD").is_file():
        return None
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    ref = head.removeprefix("ref: ")
    # A linked worktree keeps its branches with the main one.
    link = git / "commondir"
    common = git / link.read_text(encoding="utf-8").strip() if link.is_file() else git
    if (common / ref).is_file():
        return (common / ref).read_text(encoding="utf-8").strip()
    packed = common / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {ref}")), None)


def _driver(device: torch.device) -> str | None:
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.split()[0] if answer.returncode == 0 and answer.stdout.strip() else None


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return triton.__version__
