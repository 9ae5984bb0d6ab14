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
from ..data.frontend import DaliLogMel
from ..errors import InputError
from ..kernels import backend
from ..kernels.layout import LayoutName, Patches
from ..kernels.log_mel import num_patches
from ..kernels.log_mel_patches import kept_log_mel, masked_log_mel
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
    dali: DaliLogMel | None
    """Who makes the log-mel, where not the engine's own op does."""

    @classmethod
    def of(cls, config: MaeRunConfig | ContrastiveRunConfig, world: World) -> "Setting":
        """Take what a run's configuration says about it."""
        dali = DaliLogMel(world.device) if config.data.frontend == "dali" else None
        return cls(world, config.seed, config.micro_batch_size, config.precision, config.layout, dali)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return autocast(self.world.device, torch.bfloat16 if self.precision == "bf16" else None)

    def micro_batches(self, batch: AudioTextBatch, limits: Sequence[Limit] = ()) -> list[AudioTextBatch]:
        """Cut a batch into forward passes of at most ``micro_batch_size`` clips and within ``limits``."""
        passes = cut(batch.num_clips, self.micro_batch_size, limits)
        return [batch.select(clips.start, clips.stop) for clips in passes]

    def patch_counts(self, batch: AudioTextBatch) -> Tensor:
        """Return the whole patches of each clip; raises InputError where one has none."""
        counts = num_patches(batch.wave_lengths)
        if bool((counts == 0).any()):
            raise InputError(
                "a clip is too short for one patch (2401 samples at 16 kHz); pack again, which leaves it out"
            )
        return counts

    def kept(self, batch: AudioTextBatch, keep_counts: Tensor, step: int) -> Patches:
        """Compute the log-mel of a random subset of each clip's patches."""
        if self.dali is None:
            return kept_log_mel(batch.wave, batch.wave_offsets, keep_counts, batch.sample_index, **self._draw(step))
        return self._masked_by_dali(self.dali, batch, keep_counts, step).kept

    def masked(self, batch: AudioTextBatch, keep_counts: Tensor, step: int) -> MaskedPatches:
        """Compute the log-mel of all patches: a random subset of each clip's, and those left to restore."""
        if self.dali is None:
            return masked_log_mel(batch.wave, batch.wave_offsets, keep_counts, batch.sample_index, **self._draw(step))
        return self._masked_by_dali(self.dali, batch, keep_counts, step)

    def _masked_by_dali(self, dali: DaliLogMel, batch: AudioTextBatch, keep_counts: Tensor, step: int) -> MaskedPatches:
        spectrogram = dali(batch.wave, batch.wave_offsets)
        frames, offsets = spectrogram.frames, spectrogram.frame_offsets
        return patch_mask(frames, offsets, keep_counts, batch.sample_index, **self._draw(step))

    def _draw(self, step: int) -> dict[str, Any]:
        return {"seed": self.seed, "step": step, "layout": self.layout}


def blocks_by_hand(blocks: Blocks, stash: Stash, device: torch.device) -> bool:
    """Whether transformer blocks are differentiated by hand (:mod:`cacophony.models.stash`) or by autograd."""
    if blocks == "auto":
        return stash not in (0, 10) or backend.choose("attention", device).path == "fused"
    return blocks == "by_hand"
