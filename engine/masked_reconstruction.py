"""Stage 1's objective: restore the masked patches of a log-mel (paper, section III-A)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batch import AudioTextBatch
from ..kernels.mae_decoder_input import interleave
from ..kernels.patch_mask import MaskedPatches, keep_fraction
from ..kernels.patch_mse import patch_mse
from ..models.audio_mae import AudioMAE
from .config import MaeObjectiveConfig, MaeRunConfig
from .distributed import World
from .objective import Report, Setting, blocks_by_hand


@dataclass(frozen=True)
class MaskedInputs:
    """A micro-batch of stage 1; lengths int64 ``[b]`` on the host: patches of each clip."""

    patches: MaskedPatches
    visible_lengths: Tensor
    restore_lengths: Tensor


class MaskedReconstruction:
    """Stage 1: restore the masked patches of a log-mel (per-patch-normalised mean squared error)."""

    def __init__(self, config: MaeObjectiveConfig, run: MaeRunConfig, world: World) -> None:
        self.config = config
        self.setting = Setting.of(run, world)

    def prepare(self, batch: AudioTextBatch, step: int) -> list[MaskedInputs]:
        """Compute log-mel and the visible and masked patches of every micro-batch."""
        setting, inputs = self.setting, []
        for micro in setting.micro_batches(batch):
            spectrogram = setting.spectrogram(micro)
            keep = keep_fraction(spectrogram.patch_counts, 1.0 - self.config.mask_ratio)
            masked = setting.mask(spectrogram, keep, micro, step)
            inputs.append(MaskedInputs(masked, keep, spectrogram.patch_counts - keep))
        return inputs

    def backward(self, model: nn.Module, inputs: list[MaskedInputs]) -> Report:
        """Add the gradient of the loss averaged over all scored patches of the global batch."""
        assert isinstance(model, AudioMAE)
        world = self.setting.world
        scored = sum(int(micro.restore_lengths.sum()) for micro in inputs)
        if self.config.loss_patches == "all":
            scored += sum(int(micro.visible_lengths.sum()) for micro in inputs)
        denominator = world.sum_(torch.tensor(float(scored), device=world.device))
        by_hand = blocks_by_hand(self.config.blocks, self.config.stash, world.device)
        stash = self.config.stash if by_hand else None
        losses: list[Tensor] = []
        valid_tokens = flops = 0
        for micro in inputs:
            masked = micro.patches
            with self.setting.autocast():
                prediction, _ = model(masked.kept, masked.restore.positions, stash)
                target = self._join(masked, masked.kept.values, masked.restore.values)
                micro_loss = patch_mse(
                    prediction,
                    target,
                    self._selected(masked),
                    denominator,
                    unbiased=self.config.unbiased_variance,
                )
            micro_loss.backward()
            losses.append(micro_loss.detach())
            visible, restore = micro.visible_lengths, micro.restore_lengths
            valid_tokens += int((2 * visible + restore).sum())
            flops += 3 * model.flops(visible, restore)
        world.sum_gradients_(model)
        return Report({"loss": world.sum_(torch.stack(losses).sum())}, valid_tokens, flops)

    def _join(self, masked: MaskedPatches, visible: Tensor, restore: Tensor) -> Tensor:
        return interleave(visible, restore, masked.kept.layout, masked.restore.layout)

    def _selected(self, masked: MaskedPatches) -> Tensor:
        visible, restore = masked.kept.layout.valid, masked.restore.layout.valid
        if self.config.loss_patches == "masked":
            visible = torch.zeros_like(visible)
        return self._join(masked, visible, restore)
