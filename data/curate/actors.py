"""Ray: an embedded one on this machine, or a cluster that is there; parts are spread over its actors by Ray Data."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import tyro

from ...errors import InputError, RunError
from ...extras import require


@dataclass(frozen=True, kw_only=True)
class Actors:
    """Where a stage works."""

    workers: int = 1
    """Processes that work at the same time; 0 works in this process, without Ray."""
    ray_address: str | None = None
    """An existing Ray cluster, which must see the same files; an own Ray on this machine by default."""
    gpus_per_worker: float = 0.0
    """GPUs that each process takes; half a GPU lets two share one."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.gpus_per_worker < 0:
            raise InputError(
                f"workers is {self.workers} and gpus-per-worker {self.gpus_per_worker}; expected 0 or more of each"
            )
        if self.ray_address is not None and not self.workers:
            raise InputError("workers is 0, which works without Ray; leave out --ray-address or give --workers")


ActorFlags = Annotated[Actors, tyro.conf.arg(name="")]
"""`Actors` as an argument of a command: its fields are flags."""


class Starter(Protocol):
    """What is copied to each actor."""

    def start(self) -> Callable[[int], int]:
        """Called once in the actor; the result is called for each item."""
        ...


class _Actor:
    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._run: Callable[[int], int] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        # What goes wrong is a value: an exception would reach the caller only as Ray's text about it.
        result, input_error, run_error = -1, "", ""
        try:
            if self._run is None:
                self._run = self._starter.start()
            result = self._run(int(batch["item"][0]))
        except InputError as error:
            input_error = str(error)
        except Exception as error:
            run_error = f"{type(error).__name__}: {error}"
        return {"result": [result], "input_error": [input_error], "run_error": [run_error]}


def on_actors(starter: Starter, items: list[int], actors: Actors) -> Iterator[int]:
    """What `starter.start()` returns for each item, in the order in which they are done.

    Raises `InputError` where Ray is not installed or the cluster cannot be reached; `RunError` where an actor dies.
    """
    if not items:
        return
    with _ray(actors) as ray:
        count = min(actors.workers, len(items))
        dataset = ray.data.from_items([{"item": item} for item in items], override_num_blocks=len(items))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # until Ray 2.64, which pyproject.toml excludes
            results = dataset.map_batches(
                _Actor,
                fn_constructor_args=(starter,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=count),
                num_cpus=1,
                num_gpus=actors.gpus_per_worker or None,
                max_restarts=0,  # one that died would be given the same part again, for ever
            )
        try:
            for row in results.iter_rows():
                if row["input_error"]:
                    raise InputError(row["input_error"])
                if row["run_error"]:
                    raise RunError(f"a worker failed: {row['run_error']}")
                yield int(row["result"])
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray could not go on: {_last_line(error)}") from error


@contextmanager
def _ray(actors: Actors) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require("ray", "ray[data]", "working in several processes", extra="curate")
    require("ray.data", "ray[data]", "working in several processes", extra="curate")
    own = {} if actors.ray_address else {"num_cpus": actors.workers, "include_dashboard": False}
    try:
        ray.init(actors.ray_address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Ray at {actors.ray_address or 'this machine'} cannot be reached: {_last_line(error)}"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Ray says of its own defaults
            ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        yield ray
    finally:
        ray.shutdown()


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
