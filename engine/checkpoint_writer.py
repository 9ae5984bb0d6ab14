"""Writes checkpoints while the training goes on, one at a time, and keeps what went wrong."""

import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from ..models.model_directory import MODEL_FILE
from .build import AnyUpdater
from .checkpoint import Manifest, Snapshot, complete, discard, optimizer_file, write_files
from .distributed import Store, World
from .run_directory import publish_model

_POLL_SECONDS = 0.02


class CheckpointWriter:
    """A rank's writer of checkpoints: each rank writes its files, rank 0 completes the checkpoint and publishes it.

    A disk that refuses ends nothing: the checkpoint before it stays, and ``failures`` grows by a line.
    """

    def __init__(self, run: Path, world: World, *, keep: int, timeout_seconds: float, saved_step: int) -> None:
        """Write checkpoints of ``run``; the newest there is, or none, is of ``saved_step``."""
        self.run, self.world, self.keep, self.timeout = run, world, keep, timeout_seconds
        self.saved_step = saved_step
        """Step of the newest checkpoint that is whole."""
        self.failures: list[str] = []
        self._store = world.connection() if world.size > 1 else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._abandoned = threading.Event()

    def save(self, step: int, updater: AnyUpdater, state: dict[str, Any]) -> None:
        """Copy what belongs to the checkpoint of ``step`` to the host and let it be written; all ranks call it.

        Waits for the checkpoint before, if that is still being written.
        """
        self.wait()
        is_main, files = self.world.is_main, dict[str, dict[str, Tensor]]()
        weights = updater.weights()
        if is_main:
            files[MODEL_FILE] = _on_host(weights)
        del weights
        if updater.is_shared:
            files[optimizer_file(self.world.rank, self.world.size)] = _on_host(updater.state_tensors())
        elif is_main:
            files[optimizer_file()] = _on_host(updater.state_tensors())
        snapshot = Snapshot(step, files, state if is_main else None)
        self._writing = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Wait for the checkpoint that is being written, if one is."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def __enter__(self) -> "CheckpointWriter":
        """Nothing is to be prepared."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being written; where the run failed, not for what other ranks should have written."""
        if kind is not None:
            self._abandoned.set()
        self._thread.shutdown()

    def _write(self, snapshot: Snapshot) -> None:
        step = snapshot.step
        try:
            manifest, error = write_files(self.run, snapshot), ""
        except (OSError, safetensors.SafetensorError) as caught:
            manifest, error = {}, str(caught)
        if self._store is None:
            error = error or self._complete(step, manifest)
        else:
            error = self._with_others(self._store, step, manifest, error)
        if error:
            if self.world.is_main:
                discard(self.run, step)
            self.failures.append(
                f"the checkpoint of step {step} could not be written ({error}); that of step {self.saved_step} is "
                "the newest. Free some space, or make the directory writable"
            )
        else:
            self.saved_step = step

    def _with_others(self, store: Store, step: int, manifest: Manifest, error: str) -> str:
        """Tell the others what this rank wrote; returns what went wrong on any rank."""
        key = f"checkpoint/{step}"
        store.set(f"{key}/{self.world.rank}", json.dumps([manifest, error]))
        if self.world.is_main:
            parts = [f"{key}/{rank}" for rank in range(self.world.size)]
            if self._come(store, parts):
                manifests, errors = zip(*(json.loads(part) for part in store.multi_get(parts)), strict=True)
                everything = {name: entry for part in manifests for name, entry in part.items()}
                error = next(filter(None, errors), "") or self._complete(step, everything)
            else:
                error = "not every rank wrote its part"
            store.set(key, error)
        elif self._come(store, [key]):
            error = store.get(key).decode()
        else:
            error = "rank 0 did not complete it"
        return error

    def _come(self, store: Store, keys: list[str]) -> bool:
        """Wait until all ``keys`` are there; False where they do not come."""
        deadline = time.monotonic() + self.timeout
        while not store.check(keys):
            if self._abandoned.wait(_POLL_SECONDS) or time.monotonic() > deadline:
                return False
        return True

    def _complete(self, step: int, manifest: Manifest) -> str:
        try:
            publish_model(self.run, complete(self.run, step, manifest, keep=self.keep))
        except OSError as error:
            return str(error)
        return ""


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
