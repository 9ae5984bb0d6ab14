"""A run directory: what it holds, how it begins, and how it may be continued.

``run.json`` (stage, resolved configuration, data, versions), ``log.jsonl``, ``tensorboard/``, ``loss.png``,
``throughput.png``, ``checkpoints/``, the newest checkpoint's model in the layout of
:mod:`cacophony.models.model_directory`, and ``.lock``, which is empty, and which the process that trains there holds.
"""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..file_lock import LOCK_FILE, locked
from ..json_file import read_json, write_json
from ..models.config_io import difference, from_dict, to_dict
from ..models.model_directory import MODEL_FILE
from .config import RUN_CONFIGS, ContrastiveRunConfig, MaeRunConfig, RunConfig, Stage

RECORD_FILE = "run.json"

# Fields that change how a run computes or reports, never what: they may differ when it is continued.
CHANGEABLE_ON_RESUME = frozenset(
    {
        "data.loader",
        "data.max_bad_share",
        "data.prefetch_batches",
        "data.workers",
        "device",
        "keep_checkpoints",
        "log_every_steps",
        "save_every_steps",
        "timeout_seconds",
        "update.bucket_mib",
        "update.implementation",
        "wandb",
    }
)


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` says about a run."""

    stage: Stage
    config: MaeRunConfig | ContrastiveRunConfig
    data: str
    data_fingerprint: str
    init: str | None


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run directory."""
    return (path / RECORD_FILE).is_file()


def read_record(run: Path) -> RunRecord:
    """Read the record of a run directory; raises InputError where ``run`` is none or is damaged."""
    if not is_run(run):
        raise InputError(f"{run}: is not a run directory; expected one written by `cacophony train`")
    path = run / RECORD_FILE
    raw = read_json(path)
    stage = raw.get("stage")
    if stage not in RUN_CONFIGS:
        raise InputError(f"{path}: stage is {stage!r}, expected mae or contrastive")
    if not isinstance(raw.get("config"), dict):
        raise InputError(f"{path}: config is missing; the file is damaged")
    config = from_dict(RUN_CONFIGS[stage], raw["config"], str(path))
    return RunRecord(
        stage, config, str(raw.get("data")), str(raw.get("data_fingerprint")), raw.get("init") and str(raw["init"])
    )


def write_record(run: Path, record: RunRecord) -> None:
    """Create the run directory with its ``run.json``."""
    run.mkdir(parents=True, exist_ok=True)
    raw: dict[str, Any] = {
        "stage": record.stage,
        "config": to_dict(record.config),
        "data": record.data,
        "data_fingerprint": record.data_fingerprint,
        "init": record.init,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    write_json(run / RECORD_FILE, raw)


def publish_model(run: Path, checkpoint: Path) -> None:
    """Make the weights of ``checkpoint`` the model of the run directory; a reader sees the old file or the new one."""
    temporary = run / f".{MODEL_FILE}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        os.link(checkpoint / MODEL_FILE, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(checkpoint / MODEL_FILE, temporary)
    temporary.replace(run / MODEL_FILE)


@contextlib.contextmanager
def held(run: Path, *, is_new: bool) -> Iterator[None]:
    """Keep other processes from training in ``run``, which is created where it is not there, while the body runs.

    Raises InputError where one is at it, or began the run that ``is_new`` says nobody has. However this process ends,
    it holds nothing then.
    """
    with locked(run, "training"):
        if is_new:
            check_new(run)
        yield


def check_new(run: Path) -> None:
    """Raise InputError where ``run`` exists and is not a directory without anything but a lock."""
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; expected a directory to write: choose another --out")
    if run.is_dir() and any(path.name != LOCK_FILE for path in run.iterdir()):
        raise InputError(f"{run}: is not empty; choose another --out, or continue the run there with --resume")


def check_resumable(
    run: Path, record: RunRecord, stage: Stage, asked: RunConfig, init: Path | None, *, allow_changed: bool = False
) -> dict[str, tuple[Any, Any]]:
    """Return the fields (old, new) in which ``run``, continued as asked, is another than its ``record`` says.

    Raises InputError where stage or init are others, and unless ``allow_changed`` where there is such a field.
    """
    if record.stage != stage:
        raise InputError(f"{run}: is a {record.stage} run; it cannot be continued as {stage}")
    if init is not None and str(init) != record.init:
        raise InputError(f"{run}: was started with --init {record.init} and cannot be continued with {init}")
    changed = difference(record.config, asked)
    changed = {name: pair for name, pair in changed.items() if name not in CHANGEABLE_ON_RESUME}
    if changed and not allow_changed:
        raise InputError(
            f"{run}: was started with {describe_changes(changed)}; leave that out, start a new run in another --out, "
            "or say --allow-changed"
        )
    return changed


def describe_changes(changed: dict[str, tuple[Any, Any]]) -> str:
    """Return a line of every changed field with its old and new value."""
    return ", ".join(f"{name} = {old} (now {new})" for name, (old, new) in changed.items())
