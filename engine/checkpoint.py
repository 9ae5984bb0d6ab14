"""Checkpoints: safetensors and JSON in a directory that appears whole or not at all. No pickle.

``<run>/checkpoints/step-00001000/`` holds ``model.safetensors``; ``optimizer.safetensors``, or of ranks that share the
update ``optimizer-00000-of-00008.safetensors`` and so on, each with its :mod:`pieces <.pieces>`; ``state.json``; and
``manifest.json``, the format and every file's size and SHA-256. (``torch.distributed.checkpoint`` would write its
metadata as a pickle, which nobody may be asked to load.)
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..json_file import read_json
from ..models.model_directory import MODEL_FILE
from ..models.weights import load_tensors, save_tensors

STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
FORMAT = 1
"""Of what a checkpoint holds; one with a larger number is refused."""

Manifest = dict[str, dict[str, Any]]
"""Size and checksum of files by name."""


class DamagedCheckpoint(InputError):
    """A checkpoint is not what was written."""


@dataclass(frozen=True)
class Snapshot:
    """What one rank writes: tensors on the host by file, and the trainer's state (of rank 0)."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any] | None


def optimizer_file(rank: int = 0, ranks: int = 1) -> str:
    """Return the name of the file with a rank's share of the moments; ``ranks`` is how many share them."""
    return "optimizer.safetensors" if ranks == 1 else f"optimizer-{rank:05d}-of-{ranks:05d}.safetensors"


def checkpoints(run: Path) -> list[Path]:
    """Return the run's checkpoint directories, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.is_dir())


def latest_checkpoint(run: Path) -> Path:
    """Return the newest checkpoint of ``run``; raises InputError where there is none."""
    found = checkpoints(run)
    if not found:
        raise InputError(f"{run}: holds no checkpoint; expected a run directory written by `cacophony train`")
    return found[-1]


def newest_whole(run: Path) -> tuple[Path, list[str]]:
    """Return the newest checkpoint that is as it was written, and what is wrong with each newer one.

    Raises InputError where none is whole or there is none, and where one is of a newer format.
    """
    damage: list[str] = []
    latest_checkpoint(run)
    for checkpoint in reversed(checkpoints(run)):
        try:
            verify(checkpoint)
        except DamagedCheckpoint as error:
            damage.append(str(error))
        else:
            return checkpoint, damage
    raise InputError(f"{run}: no checkpoint is whole ({'; '.join(damage)}); start again in another --out")


def verify(checkpoint: Path) -> None:
    """Raise DamagedCheckpoint where a file is not as it was written, InputError where the format is a newer one."""
    try:
        manifest = read_json(checkpoint / MANIFEST_FILE)
        files, version = dict(manifest["files"]), int(manifest["format"])
    except (InputError, KeyError, TypeError, ValueError):
        raise DamagedCheckpoint(f"{checkpoint}: {MANIFEST_FILE} is missing or damaged") from None
    if version > FORMAT:
        raise InputError(
            f"{checkpoint}: is of format {version}, and this version of cacophony reads up to {FORMAT}; update it"
        )
    for name, expected in files.items():
        path = checkpoint / name
        if path.parent != checkpoint or not path.is_file():
            raise DamagedCheckpoint(f"{path}: is missing")
        if _entry(path) != expected:
            raise DamagedCheckpoint(f"{path}: is not what was written (size or checksum differ)")
    if not {MODEL_FILE, STATE_FILE} <= files.keys():
        raise DamagedCheckpoint(f"{checkpoint}: {MANIFEST_FILE} names no {MODEL_FILE} or no {STATE_FILE}")


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint, so that it counts as none and its step can be written again."""
    hidden = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)


def write_files(run: Path, snapshot: Snapshot) -> Manifest:
    """Write and sync a rank's files of a checkpoint, under its temporary name; returns their checksums.

    Raises OSError or SafetensorError where the disk refuses.
    """
    directory = _temporary(run, snapshot.step)
    directory.mkdir(parents=True, exist_ok=True)
    for name, tensors in snapshot.tensors.items():
        save_tensors(tensors, directory / name)
    names = list(snapshot.tensors)
    if snapshot.state is not None:
        (directory / STATE_FILE).write_text(json.dumps(snapshot.state, indent=1), encoding="utf-8")
        names.append(STATE_FILE)
    for name in names:
        _sync(directory / name)
    return {name: _entry(directory / name) for name in names}


def complete(run: Path, step: int, manifest: Manifest, *, keep: int) -> Path:
    """Give a checkpoint of which every rank has written its files its name; delete all but the newest ``keep``.

    A kill at any moment leaves either the new directory whole or the old ones untouched. Raises OSError.
    """
    temporary = _temporary(run, step)
    final = run / "checkpoints" / f"step-{step:08d}"
    content = {"format": FORMAT, "files": dict(sorted(manifest.items()))}
    (temporary / MANIFEST_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    _sync(temporary / MANIFEST_FILE)
    _sync(temporary)
    temporary.rename(final)
    _sync(final.parent)
    for old in checkpoints(run)[:-keep]:
        # Renamed first: a kill while files disappear must not leave half a checkpoint under a whole one's name.
        hidden = old.with_name(f".{old.name}.tmp")
        old.rename(hidden)
        # On NFS a file that somebody reads keeps its directory: the new checkpoint is whole all the same, and what is
        # left of the old one goes when the run is continued.
        shutil.rmtree(hidden, ignore_errors=True)
    return final


def discard(run: Path, step: int) -> None:
    """Delete what was written of a checkpoint that will not be completed."""
    shutil.rmtree(_temporary(run, step), ignore_errors=True)


def discard_unfinished(run: Path) -> None:
    """Delete what a killed run left under temporary names."""
    for leftover in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)  # as above


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Return the trainer's state of a checkpoint; raises InputError where it is missing or damaged."""
    return read_json(checkpoint / STATE_FILE)


def load_optimizer(checkpoint: Path) -> dict[str, Tensor]:
    """Return the moments that all ranks wrote, or their :mod:`pieces <.pieces>`; raises InputError."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(checkpoint.glob("optimizer*.safetensors")):
        tensors |= load_tensors(file)
    return tensors


def _temporary(run: Path, step: int) -> Path:
    return run / "checkpoints" / f".step-{step:08d}.tmp"


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
