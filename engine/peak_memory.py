"""The most memory a rank took, and what the planner expected of it."""

import resource
import sys

import torch
from torch import Tensor

from ..data.batch import AudioTextBatch
from ..kernels.log_mel import FREQ_PATCHES, num_patches
from .build import Config
from .distributed import World
from .gpus import GIB
from .step_cost import is_shared
from .step_memory import ClipSize, StepProbe


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak since the process began: ``peak_bytes``, allocated on a GPU; elsewhere ``peak_resident_bytes``.

    A CPU's allocator counts nothing: its figure is all that the process had in memory at a time, code included.
    """
    if device.type == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(device)}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_resident_bytes": resident if sys.platform == "darwin" else 1024 * resident}


def compare_with_plan(config: Config, batch: AudioTextBatch, world: World) -> str:
    """Return a line that compares this rank's peak with what the planner expects for ``batch``'s mean clip."""
    measured = peak_memory(world.device)
    if "peak_bytes" not in measured:
        return f"peak memory: {measured['peak_resident_bytes'] / GIB:.2f} GiB resident; a CPU's is not planned"
    found = f"peak memory: {measured['peak_bytes'] / GIB:.2f} GiB allocated"
    if config.update.implementation == "per_tensor" or config.backend == "reference":
        return f"{found}; the planner knows only the fused ops and the arena"
    expected = expected_bytes(config, mean_clip(batch), world.size)
    return f"{found}, {expected / GIB:.2f} GiB expected ({measured['peak_bytes'] / expected - 1:+.1%})"


def expected_bytes(config: Config, clip: ClipSize, ranks: int) -> int:
    """Return what the planner's functions expect a rank to allocate at most, on clips of this size."""
    probe = StepProbe(config, clip)
    state, step = probe.state, probe.memory(config, ranks)
    if is_shared(config, ranks):
        state = state.shared(ranks)
    held = state.master + state.gradient + state.moments + state.compute
    return held + step.inputs + step.prepared + step.kept + step.working


def mean_clip(batch: AudioTextBatch) -> ClipSize:
    """Return the size of a clip of ``batch`` on average."""
    patches = _mean(num_patches(batch.wave_lengths)) / FREQ_PATCHES
    return ClipSize(max(round(patches), 1) * FREQ_PATCHES, round(_mean(batch.token_lengths)))


def _mean(counts: Tensor) -> float:
    return float(counts.double().mean())
