"""What every rank must know of the others after each step, told without making the device wait."""

import torch
from torch import Tensor

from .distributed import World


class LateFlags:
    """Whether flags were set on any rank, as of the step before: then the answer is here already.

    A rank alone knows at once. All ranks get the same answer after the same step.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._coming: tuple[Tensor, torch.cuda.Event | None] | None = None

    def exchange(self, *flags: bool) -> list[bool]:
        """Tell others ``flags``; returns which of those of the last call were set on any rank (none at the first)."""
        if self.world.size == 1:
            return list(flags)
        answer = [False] * len(flags)
        if self._coming is not None:
            counts, arrived = self._coming
            if arrived is not None:
                arrived.synchronize()
            answer = (counts > 0).tolist()
        self._coming = self._send(flags)
        return answer

    def _send(self, flags: tuple[bool, ...]) -> tuple[Tensor, torch.cuda.Event | None]:
        here = torch.tensor(flags, dtype=torch.float32)
        if self.world.device.type != "cuda":
            return self.world.sum_(here), None
        counts = torch.empty(len(flags), pin_memory=True)
        # From page-locked memory; what torch.tensor gave would be copied while the host waits.
        there = self.world.sum_(here.pin_memory().to(self.world.device, non_blocking=True))
        counts.copy_(there, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return counts, arrived
