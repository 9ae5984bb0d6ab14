"""Checkpoints: safetensors and JSON in a directory that appears whole or not at all. No pickle.

``<run>/checkpoints/step-00001000/`` holds ``model.safetensors``, ``optimizer.safetensors`` and ``state.json``.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError
from ..models.tensor_shapes import check_tensors
from .config_io import read_json

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


def checkpoints(run: Path) -> list[Path]:
    """Return the run's checkpoint directories, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.is_dir())


def latest_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint of ``run``; raises InputError where there is none."""
    found = checkpoints(run)
    if not found:
        raise InputError(f"{run}: holds no checkpoint; expected a run directory written by `cacophony train`")
    return found[-1]


def save_checkpoint(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Write the checkpoint of ``step`` and delete all but the newest ``keep``.

    Everything is written and synced under a temporary name, then renamed: a kill at any moment leaves either the new
    directory whole or the old ones untouched. Raises InputError where the disk refuses.
    """
    final = run / "checkpoints" / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _save_tensors(model.state_dict(), temporary / MODEL_FILE)
        _save_tensors(optimizer_state, temporary / OPTIMIZER_FILE)
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        temporary.rename(final)
        _sync(final.parent)
        for old in checkpoints(run)[:-keep]:
            # Renamed first: a kill while files disappear must not leave half a checkpoint under a whole one's name.
            hidden = old.with_name(f".{old.name}.tmp")
            old.rename(hidden)
            shutil.rmtree(hidden)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(
            f"{final}: the checkpoint could not be written ({error}); the previous one is still valid. "
            "Free some space and continue with --resume"
        ) from None
    return final


def discard_unfinished(run: Path) -> None:
    """Delete what a killed :func:`save_checkpoint` left under temporary names."""
    for leftover in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(leftover)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Return the trainer's state of a checkpoint; raises InputError where it is missing or damaged."""
    return read_json(checkpoint / STATE_FILE)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises InputError where it is missing, truncated or not one."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: is missing, truncated or not safetensors ({error})") from None


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy ``tensors`` into ``module``'s parameters.

    Raises InputError that names the first tensor that is missing, unexpected or of another shape.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_tensors(found, {name: tuple(own.shape) for name, own in module.state_dict().items()}, source)
    module.load_state_dict(dict(tensors))


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
