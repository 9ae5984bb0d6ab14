"""The ranks of a run: started by torchrun, or alone."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError
from ..kernels.spans import span
from .phases import COLLECTIVE


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs and checkpoints."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` by its sum over ranks."""
        if self.size > 1:
            with span(COLLECTIVE):
                dist.all_reduce(tensor)
        return tensor

    def total(self, *counts: float) -> tuple[Tensor, ...]:
        """Return the sum over ranks of each of these host numbers, 0-d float64 on the device; waits for nothing."""
        here = [torch.full((), count, dtype=torch.float64, device=self.device) for count in counts]
        return self.sum_(torch.stack(here)).unbind()

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate every rank's ``rows`` ``[n, ...]`` (same shape everywhere) in rank order; no gradient."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        with span(COLLECTIVE):
            dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def sum_gradients_(self, model: torch.nn.Module) -> None:
        """Sum every parameter's gradient over ranks, in one collective."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients])
        with span(COLLECTIVE):
            dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def any_of(self, *flags: bool) -> list[bool]:
        """Whether each of ``flags`` is set on any rank."""
        if self.size == 1:
            return list(flags)
        return (self.sum_(torch.tensor([float(flag) for flag in flags], device=self.device)) > 0).tolist()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_world(device: str) -> World:
    """Join the ranks that torchrun started (environment variables), or form a world of one.

    ``device`` is ``"auto"`` or a torch device; a rank among several takes the GPU of its local rank. Raises InputError
    where the device does not exist.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = choose_device(device)
    if size > 1:
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(rank, size, chosen)


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
