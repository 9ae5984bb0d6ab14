"""Before the first step the ranks compare what they were told, and name what differs."""

import contextlib
import datetime
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..errors import InputError
from ..models.config_io import to_dict
from .build import Config
from .config import Stage
from .distributed import Store, World, host_name

_PACKAGE = Path(__file__).parents[1]
_ROOMS = ("kernels", "models", "data", "engine", "bench")


def check_agreement(world: World, facts: Mapping[str, Any], timeout_seconds: float) -> None:
    """Raise InputError on every rank where one has other ``facts`` (nested, of JSON values) than rank 0.

    The line names the rank, the first facts that differ and their values; or the rank that says nothing within
    ``timeout_seconds``.
    """
    if world.store is None:
        return
    mine = json.dumps({"host": host_name(), "facts": facts})
    world.store.set(f"facts/{world.rank}", mine)
    if world.is_main:
        world.store.set("verdict of facts", _compare(world, world.store, timeout_seconds))
    try:
        # Rank 0 gives its verdict after at most so long.
        world.store.wait(["verdict of facts"], datetime.timedelta(seconds=1.5 * timeout_seconds))
        verdict = world.store.get("verdict of facts").decode()
    except dist.DistError:
        raise InputError(
            f"rank 0 ended, or has not compared the ranks' settings within {1.5 * timeout_seconds:g} s; see its output"
        ) from None
    if verdict:
        _wait_until_heard(world, world.store)
        raise InputError(verdict)


@contextlib.contextmanager
def withdrawing(world: World) -> Iterator[None]:
    """Let the ranks that wait in :func:`check_agreement` know of an InputError that the body raises."""
    try:
        yield
    except InputError as error:
        if world.store is not None:
            said = f"rank {world.rank} on {host_name()}: {error}"
            world.store.set(f"facts/{world.rank}", json.dumps({"withdrawn": said}))
            if world.is_main:
                world.store.set("verdict of facts", said)
            _wait_until_heard(world, world.store)
        raise


def _wait_until_heard(world: World, store: Store) -> None:
    """Let rank 0, with whose process the store may end, wait until the others know the verdict."""
    store.set(f"heard/{world.rank}", "")
    if world.is_main:
        with contextlib.suppress(dist.DistError):  # one that has ended by itself
            store.wait([f"heard/{rank}" for rank in range(world.size)], datetime.timedelta(seconds=10))


def _compare(world: World, store: Store, timeout_seconds: float) -> str:
    keys = [f"facts/{rank}" for rank in range(world.size)]
    try:
        store.wait(keys, datetime.timedelta(seconds=timeout_seconds))
    except dist.DistError:
        missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        return f"rank {', '.join(missing)} has not begun within {timeout_seconds:g} s; see what it says"
    said = [json.loads(value) for value in store.multi_get(keys)]
    if withdrawn := [theirs["withdrawn"] for theirs in said if "withdrawn" in theirs]:
        return withdrawn[0]
    expected = dict(_flat(said[0]["facts"]))
    for rank, theirs in enumerate(said[1:], 1):
        found = dict(_flat(theirs["facts"]))
        differing = [name for name in expected | found if found.get(name) != expected.get(name)]
        if differing:
            values = "; ".join(f"{n} is {found.get(n)!r}, there {expected.get(n)!r}" for n in differing[:5])
            more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
            return (
                f"rank {rank} on {theirs['host']} differs from rank 0 on {said[0]['host']}: {values}{more}; "
                "start every rank with the same command, code and data"
            )
    return ""


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def run_facts(
    stage: Stage, config: Config, data_fingerprint: str, init: Path | None, *, is_continued: bool
) -> dict[str, Any]:
    """Return what must be the same on all ranks of a run."""
    return {
        "stage": stage,
        "config": to_dict(config),
        "code": code_facts(),
        "data": data_fingerprint,
        "init": str(init),
        "continued": is_continued,
    }


def code_facts() -> dict[str, str]:
    """Return what must be the same on every rank for it to compute the same: versions, and a digest of our sources."""
    digest = hashlib.sha256()
    files = [*_PACKAGE.glob("*.py"), *(file for room in _ROOMS for file in (_PACKAGE / room).rglob("*.py"))]
    for file in sorted(files):
        digest.update(f"{file.relative_to(_PACKAGE)}\n".encode() + file.read_bytes())
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__,
        "sources": digest.hexdigest()[:16],
    }
