"""What to do where the memory of a GPU is full."""

import contextlib
from collections.abc import Iterator

import torch

from ..errors import RunError
from .config import ContrastiveRunConfig, MaeRunConfig


def in_short(error: torch.OutOfMemoryError) -> str:
    """Return what was asked for and was not there; the rest of PyTorch's message is of its allocator."""
    return ". ".join(str(error).strip().split(". ")[:2]).rstrip(".")


@contextlib.contextmanager
def advising(config: MaeRunConfig | ContrastiveRunConfig) -> Iterator[None]:
    """Raise RunError that says which settings take less where the device's memory is full in the body."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"{in_short(error)}; see with nvidia-smi that no other process holds memory there, or continue with "
            f"--resume --allow-changed and less of --micro-batch-size (now {config.micro_batch_size}) or "
            f"--objective.stash (now {config.objective.stash}): `cacophony plan` says what fits"
        ) from None
