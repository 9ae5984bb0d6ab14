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
from torch import Tensor

from ..errors import InputError
from ..json_file import read_json
from ..models.model_directory import MODEL_FILE
from ..models.weights import save_tensors

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
    weights: Mapping[str, Tensor],
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
        save_tensors(weights, temporary / MODEL_FILE)
        save_tensors(optimizer_state, temporary / OPTIMIZER_FILE)
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
