"""What a stage minimises: an objective turns a batch into this rank's share of the *global* gradient and a report.

``prepare`` computes the inputs of a step once (log-mel, patch subsets, targets); ``backward`` adds the gradient to the
parameters and can be called again on the same inputs, as SAM does; the update sums over ranks. The trainer knows no
stage.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..data.batch import AudioTextBatch
from ..data.frontend import FrontEnd, choose_front_end
from ..errors import InputError
from ..kernels import backend
from ..kernels.layout import LayoutName
from ..kernels.log_mel import Spectrogram
from ..kernels.patch_mask import MaskedPatches, patch_mask
from ..kernels.precision import autocast
from ..models.by_hand import Stash
from .config import Blocks, ContrastiveRunConfig, MaeRunConfig, Precision
from .distributed import World
from .micro_batches import Limit, cut


@dataclass(frozen=True)
class Report:
    """What one gradient cost and gave: losses are 0-d tensors of the global batch, the counts are this rank's."""

    losses: dict[str, Tensor]
    valid_tokens: int
    """Tokens that networks saw, padding left out; a patch that encoder and decoder both see counts twice."""
    model_flops: int
    """Three times the forward pass's on valid tokens, as is usual; nothing that is computed twice."""
    recomputed_flops: int
    """What the backward pass computed again because it was not kept."""


class Objective(Protocol):
    """A stage's loss."""

    def prepare(self, batch: AudioTextBatch, step: int) -> Any:
        """Compute what every gradient of this step shares."""
        ...

    def backward(self, model: nn.Module, inputs: Any) -> Report:
        """Add this rank's share of the global batch's gradient to the parameters' ``grad``; the ranks' sum is it."""
        ...


@dataclass(frozen=True)
class Setting:
    """How an objective computes, whatever it minimises."""

    world: World
    seed: int
    micro_batch_size: int
    precision: Precision
    layout: LayoutName
    front_end: FrontEnd

    @classmethod
    def of(cls, config: MaeRunConfig | ContrastiveRunConfig, world: World) -> "Setting":
        """Take what a run's configuration says about it."""
        front_end = choose_front_end(config.data.frontend, world.device)
        return cls(world, config.seed, config.micro_batch_size, config.precision, config.layout, front_end)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return autocast(self.world.device, torch.bfloat16 if self.precision == "bf16" else None)

    def micro_batches(self, batch: AudioTextBatch, limits: Sequence[Limit] = ()) -> list[AudioTextBatch]:
        """Cut a batch into forward passes of at most ``micro_batch_size`` clips and within ``limits``."""
        passes = cut(batch.num_clips, self.micro_batch_size, limits)
        return [batch.select(clips.start, clips.stop) for clips in passes]

    def spectrogram(self, batch: AudioTextBatch) -> Spectrogram:
        """Compute the log-mel of a batch; raises InputError where a clip has no whole patch."""
        spectrogram = self.front_end(batch.wave, batch.wave_offsets)
        if bool((spectrogram.patch_counts == 0).any()):
            raise InputError(
                "a clip is too short for one patch (2401 samples at 16 kHz); pack again, which leaves it out"
            )
        return spectrogram

    def mask(self, spectrogram: Spectrogram, keep_counts: Tensor, batch: AudioTextBatch, step: int) -> MaskedPatches:
        """Keep a random subset of each clip's patches."""
        return patch_mask(
            spectrogram.frames,
            spectrogram.frame_offsets,
            keep_counts,
            batch.sample_index,
            seed=self.seed,
            step=step,
            layout=self.layout,
        )


def blocks_by_hand(blocks: Blocks, stash: Stash, device: torch.device) -> bool:
    """Whether transformer blocks are differentiated by hand (:mod:`cacophony.models.stash`) or by autograd."""
    if blocks == "auto":
        return stash not in (0, 10) or backend.choose("attention", device).path == "fused"
    return blocks == "by_hand"
