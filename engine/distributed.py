"""The ranks of a run: started by torchrun, or alone."""

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, rendezvous  # pyright: ignore[reportPrivateImportUsage]

from ..errors import InputError, RunError
from ..kernels.spans import span
from .phases import COLLECTIVE

TIMEOUT_SECONDS = 600.0
_POLL_SECONDS = 0.1

# torch 2.13 has new names for these.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class RanksLost(RunError):
    """An exchange with other ranks broke off."""


@dataclass
class Exchanges:
    """How many exchanges with other ranks this one has begun: which rank others wait for can be told from it."""

    begun: int = 0


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run, and the device it computes on.

    An exchange that breaks off, for a rank is gone, raises RanksLost. ``store`` is where ranks leave each other short
    messages; a rank alone has none.
    """

    rank: int
    size: int
    device: torch.device
    store: Store | None = field(default=None, compare=False, repr=False)
    exchanges: Exchanges = field(default_factory=Exchanges, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs, and checkpoints' common part."""
        return self.rank == 0

    def connection(self) -> Store:
        """Return a connection to the store for a thread of its own; one does not wait for what another waits for."""
        assert self.store is not None
        return self.store.clone()  # pyright: ignore[reportAttributeAccessIssue]  (not in torch's stub)

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """Count the exchange with other ranks that the body is, and waits for."""
        self.exchanges.begun += 1
        with span(COLLECTIVE), _breaking_off():
            yield

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` by its sum over ranks."""
        if self.size > 1:
            with self.exchange():
                dist.all_reduce(tensor)
        return tensor

    def begin_sum_(self, tensor: Tensor) -> dist.Work:
        """Begin to replace ``tensor`` by its sum over ranks, of which there are several; see :meth:`finish`."""
        self.exchanges.begun += 1
        with _breaking_off():
            return _begun(dist.all_reduce(tensor, async_op=True))

    def begin_sum_shares(self, whole: Tensor, own: Tensor) -> dist.Work:
        """Begin to sum the flat ``whole`` over ranks, of which there are several; see :meth:`finish`.

        ``own`` gets this rank's share: as much for each, in rank order.
        """
        self.exchanges.begun += 1
        with _breaking_off():
            return _begun(_reduce_scatter(own, whole, async_op=True))

    def finish(self, begun: Iterable[dist.Work]) -> None:
        """Let what comes wait for exchanges that were begun: on a GPU its stream, elsewhere this thread."""
        with span(COLLECTIVE), _breaking_off():
            for work in begun:
                work.wait()

    def gather_shares(self, whole: Tensor, own: Tensor) -> None:
        """Fill the flat ``whole`` with every rank's ``own`` share, in rank order."""
        if self.size > 1 and whole.numel():
            with self.exchange():
                _all_gather(whole, own)

    def total(self, *counts: float) -> tuple[Tensor, ...]:
        """Return the sum over ranks of each of these host numbers, 0-d float64 on the device; waits for nothing."""
        here = [torch.full((), count, dtype=torch.float64, device=self.device) for count in counts]
        return self.sum_(torch.stack(here)).unbind()

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate every rank's ``rows`` ``[n, ...]`` (same shape everywhere) in rank order; no gradient."""
        if self.size == 1:
            return rows
        whole = rows.new_empty((self.size * len(rows), *rows.shape[1:]))
        with self.exchange():
            _all_gather(whole, rows.contiguous())
        return whole

    def sum_gradients_(self, model: torch.nn.Module) -> None:
        """Sum every parameter's gradient over ranks, in one collective."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = self.sum_(torch.cat([g.flatten() for g in gradients]))
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def from_main(self, name: str, text: str) -> str:
        """Return the ``text`` that rank 0 gave; ``name`` is of this message alone."""
        if self.store is None:
            return text
        if self.is_main:
            self.store.set(f"from main/{name}", text)
        with self.exchange():
            return self.store.get(f"from main/{name}").decode()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            # Unless told, NCCL takes the GPU whose number is the rank's among all ranks of all machines.
            with self.exchange():
                dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def _breaking_off() -> Iterator[None]:
    """Raise RanksLost where the exchange that is the body breaks off."""
    try:
        yield
    except RuntimeError as error:
        raise RanksLost(str(error)) from error


def _begun(work: dist.Work | None) -> dist.Work:
    assert work is not None  # of several ranks, all of them in the group
    return work


def join_world(device: str, timeout_seconds: float = TIMEOUT_SECONDS) -> World:
    """Join the ranks that torchrun started (environment variables), or form a world of one.

    ``device`` is ``"auto"`` or a torch device; a rank among several takes the GPU of its local rank. Joining gives up
    after ``timeout_seconds``, an exchange after half as much more. Raises InputError where the device does not exist,
    the variables make no sense, or the ranks do not find each other.
    """
    size, rank = _from_environment("WORLD_SIZE", 1), _from_environment("RANK", 0)
    if not 0 <= rank < size:
        raise InputError(f"RANK is {rank} and WORLD_SIZE {size}; expected ranks 0 to WORLD_SIZE - 1, as torchrun sets")
    chosen = choose_device(device)
    if size > 1 and chosen.type == "cuda" and chosen.index is None:
        chosen = choose_device(f"cuda:{_from_environment('LOCAL_RANK', 0)}")
    if chosen.type == "cuda" and chosen.index is not None:
        # Events are recorded on the current device's stream, whatever they are to tell about.
        torch.cuda.set_device(chosen)
    if size == 1:
        return World(rank, size, chosen)
    store = _rendezvous(rank, timeout_seconds)
    try:
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            # Later than RankWatch, which can name the rank that is to blame.
            timeout=datetime.timedelta(seconds=1.5 * timeout_seconds),
        )
    except dist.DistError as error:
        raise InputError(
            f"rank {rank} found the others and could not join them ({str(error).splitlines()[0]}); see what they say"
        ) from None
    return World(rank, size, chosen, PrefixStore("run", store))


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise InputError(f"{name} is {value!r}; expected a whole number, as torchrun sets")
    return int(value)


def _rendezvous(rank: int, timeout_seconds: float) -> Store:
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not port:
        raise InputError("MASTER_ADDR or MASTER_PORT is not set; start the ranks with torchrun")
    where = f"{address}:{port} (MASTER_ADDR:MASTER_PORT)"
    lost = f"{where}: the ranks did not find each other within {timeout_seconds:g} s"
    what_to_do = "check the address, firewalls, and that every rank was started"
    if rank > 0 and not _answers(address, _from_environment("MASTER_PORT", 0), timeout_seconds):
        raise InputError(f"{lost} (rank 0 does not answer there); {what_to_do}")
    try:
        store, _, _ = next(rendezvous("env://", timeout=datetime.timedelta(seconds=timeout_seconds)))
    except (dist.DistError, ValueError) as error:
        if "EADDRINUSE" in str(error):
            raise InputError(f"{where}: the port is in use; choose another (torchrun --master-port)") from None
        raise InputError(f"{lost} ({str(error).splitlines()[0]}); {what_to_do}") from None
    return store


def _answers(address: str, port: int, timeout_seconds: float) -> bool:
    """Whether somebody listens there before time is up; torch, which tries as well, writes pages of C++ about it."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            with socket.create_connection((address, port), timeout=timeout_seconds):
                return True
        except (OSError, OverflowError):
            if time.monotonic() + _POLL_SECONDS > deadline:
                return False
            time.sleep(_POLL_SECONDS)


def host_name() -> str:
    """Return the name of this machine, for messages."""
    return socket.gethostname()


def choose_device(device: str) -> torch.device:
    """Turn a device setting into a device that exists; ``"auto"`` takes a GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {device!r} is unknown; expected auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    return chosen
