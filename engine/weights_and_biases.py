"""The extra `wandb`: a run's log on Weights & Biases."""

import importlib
import importlib.util
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError

ID_FILE = "wandb_id.txt"


class WandbRun(Protocol):
    """What is used of a run of Weights & Biases."""

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Log a line."""
        ...

    def finish(self) -> None:
        """Upload what is left."""
        ...


def check_wandb(project: str) -> None:
    """Raise InputError where a ``project`` is named and the package is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise InputError(
            f"wandb is {project!r}, but the package is not installed; `pip install 'cacophony-engine[wandb]'`, or "
            "leave wandb empty"
        )


def start_wandb(project: str, run: Path, continued: bool, config: Mapping[str, Any]) -> WandbRun:
    """Start logging run directory ``run`` to ``project``, or go on with what was logged of it; package needed."""
    check_wandb(project)
    wandb = importlib.import_module("wandb")
    file = run / ID_FILE
    if not (continued and file.is_file()):
        file.write_text(secrets.token_hex(8), encoding="utf-8")
    identity = file.read_text(encoding="utf-8").strip()
    return wandb.init(
        project=project, name=run.resolve().name, id=identity, resume="allow", dir=str(run), config=dict(config)
    )
