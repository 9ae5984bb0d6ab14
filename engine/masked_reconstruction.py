"""Stage 1's objective: restore the masked patches of a log-mel (paper, section III-A)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batch import AudioTextBatch
from ..kernels.choose_patches import keep_fraction
from ..kernels.fill import Budget, budgets, fill_patches, real_tokens
from ..kernels.log_mel import num_patches
from ..kernels.mae_decoder_input import interleave
from ..kernels.patch_mask import MaskedPatches
from ..kernels.patch_mse import patch_mse
from ..kernels.spans import span
from ..models.audio_mae import AudioMAE
from ..models.gradients import telling_the_last
from .config import MaeObjectiveConfig, MaeRunConfig
from .distributed import World
from .micro_batches import check_longest
from .objective import Report, Setting, blocks_by_hand
from .phases import BACKWARD, FORWARD, LOSS
from .step_cost import recomputed_mae_flops


@dataclass(frozen=True)
class MaskedInputs:
    """A micro-batch of stage 1; lengths int64 ``[b]`` on the host: patches of each clip, what fills up left out."""

    patches: MaskedPatches
    visible_lengths: Tensor
    restore_lengths: Tensor


class MaskedReconstruction:
    """Stage 1: restore the masked patches of a log-mel (per-patch-normalised mean squared error)."""

    def __init__(self, config: MaeObjectiveConfig, run: MaeRunConfig, world: World) -> None:
        self.config = config
        self.setting = Setting.of(run, world)
        self.longest = run.data.max_patches
        self.budgets = self._budgets(run.micro_batch_tokens) if run.micro_batch_tokens else None

    def prepare(self, batch: AudioTextBatch, step: int) -> list[MaskedInputs]:
        """Compute log-mel and the visible and masked patches of every micro-batch."""
        setting, inputs, limits = self.setting, [], []
        if self.budgets:
            counts = num_patches(batch.wave_lengths)
            check_longest(counts, self.longest, "patches", "data.crop_seconds")
            visible = self._visible(counts)
            limits = [(visible, self.budgets[0].tokens), (counts - visible, self.budgets[1].tokens)]
        for micro in setting.micro_batches(batch, limits):
            counts = setting.patch_counts(micro)
            keep = self._visible(counts)
            masked = setting.masked(micro, keep, step)
            if self.budgets:
                parts = zip((masked.kept, masked.restore), self.budgets, strict=True)
                masked = MaskedPatches(*(fill_patches(patches, budget) for patches, budget in parts))
            inputs.append(MaskedInputs(masked, keep, counts - keep))
        return inputs

    def _visible(self, patch_counts: Tensor) -> Tensor:
        return keep_fraction(patch_counts, 1.0 - self.config.mask_ratio)

    def _budgets(self, tokens: int) -> tuple[Budget, ...]:
        """Split ``tokens`` of the decoder into visible and masked ones, as a clip of so many patches would be.

        Both shares grow with the patches, so whatever clip fits into the whole fits into both.
        """
        all_patches = torch.tensor((tokens, self.longest))  # of a micro-batch, of a clip
        visible = self._visible(all_patches)
        sizes = [(int(most), int(longest)) for most, longest in (visible, all_patches - visible)]
        return budgets(self.setting.micro_batch_size, *sizes)

    def backward(self, model: nn.Module, inputs: list[MaskedInputs]) -> Report:
        """Add this rank's share of the gradient of the loss averaged over all scored patches of the global batch."""
        assert isinstance(model, AudioMAE)
        world = self.setting.world
        scored = sum(int(micro.restore_lengths.sum()) for micro in inputs)
        if self.config.loss_patches == "all":
            scored += sum(int(micro.visible_lengths.sum()) for micro in inputs)
        (scored_everywhere,) = world.total(scored)
        denominator = scored_everywhere.float()
        by_hand = blocks_by_hand(self.config.blocks, self.config.stash, world.device)
        stash = self.config.stash if by_hand else None
        losses: list[Tensor] = []
        for micro in telling_the_last(inputs):
            masked = micro.patches
            with span(FORWARD), self.setting.autocast():
                prediction, _ = model(masked.kept, masked.restore.positions, stash)
            with span(LOSS), self.setting.autocast():
                target = self._join(masked, masked.kept.values, masked.restore.values)
                micro_loss = patch_mse(
                    prediction,
                    target,
                    self._selected(micro),
                    denominator,
                    unbiased=self.config.unbiased_variance,
                )
            with span(BACKWARD):
                micro_loss.backward()
            losses.append(micro_loss.detach())
        visible = torch.cat([micro.visible_lengths for micro in inputs])
        restore = torch.cat([micro.restore_lengths for micro in inputs])
        valid_tokens = int((2 * visible + restore).sum())
        flops = 3 * model.flops(visible, restore)
        again = recomputed_mae_flops(model, visible, visible + restore, stash)
        return Report({"loss": world.sum_(torch.stack(losses).sum())}, valid_tokens, flops, again)

    def _join(self, masked: MaskedPatches, visible: Tensor, restore: Tensor) -> Tensor:
        return interleave(visible, restore, masked.kept.layout, masked.restore.layout)

    def _selected(self, micro: MaskedInputs) -> Tensor:
        masked = micro.patches
        visible = real_tokens(masked.kept.layout, int(micro.visible_lengths.sum()))
        restore = real_tokens(masked.restore.layout, int(micro.restore_lengths.sum()))
        if self.config.loss_patches == "masked":
            visible = torch.zeros_like(visible)
        return self._join(masked, visible, restore)
