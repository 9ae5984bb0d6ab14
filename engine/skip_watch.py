"""Watches for steps skipped in a row without waiting for the device, and names the batches they were made of."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import RunError
from ..json_file import write_json


@dataclass(frozen=True)
class _Step:
    """A step whose count is on its way: ``arrived`` is None where it is here already."""

    number: int
    sample_index: Tensor
    in_a_row: Tensor
    arrived: torch.cuda.Event | None


class SkipWatch:
    """Reads each step's count of skipped ones once it has arrived, and keeps the batches that may be to blame."""

    def __init__(self, limit: int) -> None:
        """Watch for ``limit`` skipped steps in a row."""
        self.limit = limit
        self.in_a_row = 0
        """Steps skipped in a row, as of the latest count that has arrived."""
        self._coming: deque[_Step] = deque()
        self._skipped: deque[_Step] = deque(maxlen=limit)

    def add(self, number: int, in_a_row: Tensor, sample_index: Tensor) -> None:
        """Note step ``number``: ``in_a_row`` 0-d, maybe on a device; ``sample_index`` ``[B]`` on the host."""
        arrived = None
        if in_a_row.is_cuda:
            pinned = torch.empty(in_a_row.shape, dtype=in_a_row.dtype, pin_memory=True)
            in_a_row = pinned.copy_(in_a_row, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._coming.append(_Step(number, sample_index, in_a_row, arrived))

    def tripped(self) -> bool:
        """Whether a count that has arrived by now reached the limit."""
        while self._coming and self.in_a_row < self.limit:
            step = self._coming[0]
            if step.arrived is not None and not step.arrived.query():
                break
            self.in_a_row = int(step.in_a_row)
            self._skipped.append(self._coming.popleft())
            if not self.in_a_row:
                self._skipped.clear()
        return self.in_a_row >= self.limit

    def save(self, path: Path, key_of: Callable[[int], str]) -> None:
        """Write the skipped steps' clips as JSON: their indices in the shards and, by ``key_of``, their keys."""
        steps = []
        for step in self._skipped:
            indices = step.sample_index.tolist()
            steps.append({"step": step.number, "sample_index": indices, "keys": [key_of(i) for i in indices]})
        write_json(path, {"skipped_in_a_row": self.in_a_row, "steps": steps})

    def error(self, path: Path, key_of: Callable[[int], str], saved_step: int) -> RunError:
        """Write the skipped steps' clips to ``path``; returns what ends the run, whose newest checkpoint is known."""
        self.save(path, key_of)
        return RunError(
            f"the gradient was not finite for {self.in_a_row} steps in a row; the keys of their clips are in {path}, "
            f"and the newest checkpoint is of step {saved_step}. Lower update.learning_rate or check the data"
        )
