"""Stage 2's objective: InfoNCE over all pairs of the global batch + λ · captioning (paper, section III-B)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batch import AudioTextBatch
from ..kernels.caption_loss import caption_loss_and_gradients
from ..kernels.choose_patches import keep_at_most
from ..kernels.dropout import DropoutKey
from ..kernels.fill import Budget, budgets, fill_layout, fill_patches, fill_rows
from ..kernels.info_nce_ranks import info_nce_across_ranks
from ..kernels.layout import Layout, Packed, Patches, pad, padded_layout
from ..kernels.log_mel import num_patches
from ..kernels.precision import at_least_float32
from ..kernels.spans import span
from ..models.audio_text import AudioText
from ..models.by_hand import Stash, gradient_buffer
from ..models.generate import PAD
from ..models.gradients import gradients_added, telling_the_last
from .config import ContrastiveObjectiveConfig, ContrastiveRunConfig
from .distributed import World
from .micro_batches import check_longest
from .objective import Report, Setting, blocks_by_hand
from .phases import BACKWARD, FORWARD, LOSS
from .step_cost import recomputed_contrastive_flops, similarity_flops


@dataclass(frozen=True)
class _Captions:
    """Caption tokens of a micro-batch: ids, layout, next-token targets and the weight of each target."""

    token_ids: Tensor
    layout: Layout
    lengths: Tensor
    targets: Tensor
    weights: Tensor

    def filled(self, budget: Budget) -> "_Captions":
        """Fill packed captions up with pads that nothing is asked of."""
        assert isinstance(self.layout, Packed)
        targets, weights = (fill_rows(numbers, budget.tokens) for numbers in (self.targets, self.weights))
        token_ids = fill_rows(self.token_ids, budget.tokens, PAD)
        return _Captions(token_ids, fill_layout(self.layout, budget), self.lengths, targets, weights)


@dataclass(frozen=True)
class PairInputs:
    """A micro-batch of stage 2 as the model sees it.

    ``audio_lengths`` (patches) and ``text.lengths`` are those of its clips, on the host; what fills up has none.
    """

    audio: Patches
    audio_lengths: Tensor
    text: _Captions
    dropout_key: DropoutKey


class ContrastiveCaptioning:
    """Stage 2: InfoNCE over all pairs of the global batch + λ · captioning, whatever the micro-batch (paper, eq. 3)."""

    def __init__(
        self, config: ContrastiveObjectiveConfig, run: ContrastiveRunConfig, world: World, dropout: float
    ) -> None:
        self.config = config
        self.setting = Setting.of(run, world)
        self.dropout = dropout
        self.captions = config.caption_weight > 0.0
        """Whether there is a captioning loss: without one nothing is decoded."""
        self.max_text_tokens = run.data.max_text_tokens
        self.budgets = None
        if run.micro_batch_tokens:
            self.budgets = budgets(
                run.micro_batch_size,
                (run.micro_batch_tokens, config.max_patches),
                (run.micro_batch_text_tokens, run.data.max_text_tokens),
            )

    def prepare(self, batch: AudioTextBatch, step: int) -> list[PairInputs]:
        """Compute patches (a random subset of long clips) and caption targets of every micro-batch."""
        setting = self.setting
        targets = int((batch.token_lengths - 1).clamp_min(0).sum())
        global_clips, global_targets = setting.world.total(batch.num_clips, targets)
        inputs, limits = [], []
        if self.budgets:
            check_longest(batch.token_lengths, self.max_text_tokens, "caption tokens", "data.max_text_tokens")
            seen = keep_at_most(num_patches(batch.wave_lengths), self.config.max_patches)
            limits = [(seen, self.budgets[0].tokens), (batch.token_lengths, self.budgets[1].tokens)]
        for micro in setting.micro_batches(batch, limits):
            keep = keep_at_most(setting.patch_counts(micro), self.config.max_patches)
            audio = setting.kept(micro, keep, step)
            captions = self._captions(micro, global_clips, global_targets)
            sample_index = micro.sample_index
            if self.budgets:
                audio_budget, text_budget = self.budgets
                audio, captions = fill_patches(audio, audio_budget), captions.filled(text_budget)
                sample_index = fill_rows(sample_index, text_budget.sequences)
            key = DropoutKey(self.dropout, setting.seed, step, sample_index)
            inputs.append(PairInputs(audio, keep, captions, key))
        return inputs

    def _captions(self, micro: AudioTextBatch, global_clips: Tensor, global_targets: Tensor) -> _Captions:
        lengths = micro.token_lengths
        layout: Layout = Packed.from_lengths(lengths, micro.wave.device)
        token_ids = micro.token_ids.long()
        targets = token_ids.roll(-1)
        predicted = (lengths - 1).clamp_min(1).to(token_ids.device, non_blocking=True)
        if self.config.caption_reduction == "caption":
            weights = (1.0 / (predicted * global_clips)).float()
        else:
            weights = (1.0 / global_targets.clamp_min(1)).float().expand_as(predicted)
        is_last = layout.positions == layout.spread(layout.lengths) - 1
        token_weights = layout.spread(weights).masked_fill(is_last, 0.0)
        if self.setting.layout == "padded":
            padded = padded_layout(layout)
            token_ids = torch.where(padded.mask, pad(token_ids, layout), PAD)
            return _Captions(token_ids, padded, lengths, pad(targets, layout), pad(token_weights, layout))
        return _Captions(token_ids, layout, lengths, targets, token_weights)

    def backward(self, model: nn.Module, inputs: list[PairInputs]) -> Report:
        """Add this rank's share of the global batch's gradient, in three passes over the micro-batches.

        1. embed every micro-batch (with a graph where the stash keeps it); 2. InfoNCE over all ranks' embeddings gives
        the gradient of each embedding; 3. embed again where nothing was kept, caption unless λ is 0, and go backward.
        """
        assert isinstance(model, AudioText)
        world, keep = self.setting.world, self.config.stash > 0
        kept = [self._embed(model, micro) if keep else None for micro in inputs]
        with torch.no_grad():
            embedded = [encoded or self._embed(model, micro) for encoded, micro in zip(kept, inputs, strict=True)]
            audio = at_least_float32(torch.cat([encoded.audio_embedding for encoded in embedded]))
            text = at_least_float32(torch.cat([encoded.text_embedding for encoded in embedded]))
            del embedded
        contrastive, audio_gradient, text_gradient = self._contrastive_gradient(model, audio, text)

        captions: list[Tensor] = []
        start = 0
        for number, micro in enumerate(telling_the_last(inputs)):
            encoded = kept[number] or self._embed(model, micro)
            kept[number] = None
            rows = slice(start, start + len(encoded.audio_embedding))
            start = rows.stop
            outputs = [encoded.audio_embedding, encoded.text_embedding]
            gradients = [
                audio_gradient[rows].to(encoded.audio_embedding.dtype),
                text_gradient[rows].to(encoded.text_embedding.dtype),
            ]
            if self.captions:
                decoded = self._decode(model, micro, encoded)
                micro_caption, decoded_gradient = self._caption_gradient(model, micro, decoded.detach())
                captions.append(micro_caption)
                outputs, gradients = [*outputs, decoded], [*gradients, decoded_gradient]
            with span(BACKWARD):
                torch.autograd.backward(outputs, gradients)
        losses = {"loss": contrastive, "contrastive": contrastive}
        if self.captions:
            captioning = world.sum_(torch.stack(captions).sum())
            losses |= {"loss": contrastive + self.config.caption_weight * captioning, "captioning": captioning}
        losses["logit_scale"] = model.logit_scale.value.detach().exp()
        valid_tokens = sum(int(m.audio_lengths.sum() + m.text.lengths.sum()) for m in inputs)
        audio_lengths = torch.cat([micro.audio_lengths for micro in inputs])
        text_lengths = torch.cat([micro.text.lengths for micro in inputs])
        similarity = similarity_flops(len(audio), len(audio) * world.size, world.size, audio.shape[1])
        flops = 3 * model.flops(audio_lengths, text_lengths) + similarity.model
        by_hand = self._stash(10) is not None
        again = recomputed_contrastive_flops(model, audio_lengths, text_lengths, self.config.stash, by_hand)
        return Report(losses, valid_tokens, flops, again + similarity.recomputed)

    def _embed(self, model: AudioText, micro: PairInputs) -> "_Encoded":
        stash = self._stash(self.config.stash or 10)
        with span(FORWARD), self.setting.autocast():
            audio_hidden, audio_embedding = model.encode_audio(micro.audio, stash)
            text_hidden, text_embedding = model.encode_text(
                micro.text.token_ids, micro.text.layout, micro.dropout_key, stash
            )
        clips = slice(len(micro.audio_lengths))  # what fills up has no part in the contrast
        return _Encoded(audio_hidden, audio_embedding[clips], text_hidden, text_embedding[clips])

    def _stash(self, level: Stash) -> Stash | None:
        """Return ``level``, None where autograd differentiates the blocks."""
        by_hand = blocks_by_hand(self.config.blocks, self.config.stash, self.setting.world.device)
        return level if by_hand else None

    def _decode(self, model: AudioText, micro: PairInputs, encoded: "_Encoded") -> Tensor:
        with span(FORWARD), self.setting.autocast():
            return model.decode_caption(
                encoded.text_hidden,
                micro.text.layout,
                encoded.audio_hidden,
                micro.audio.layout,
                micro.dropout_key,
                self._stash(10),
            )

    def _caption_gradient(self, model: AudioText, micro: PairInputs, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return the captioning loss, and λ times its gradient of ``decoded``; the head's goes to its ``grad``."""
        head, text = model.caption_decoder.head, micro.text
        with span(LOSS):
            found = caption_loss_and_gradients(
                *(decoded, head.weight, head.bias, text.targets, text.weights),
                weight_gradient=gradient_buffer(head.weight),
                bias_gradient=gradient_buffer(head.bias),
                gradient_scale=self.config.caption_weight,
            )
        gradients_added((head.weight, head.bias))
        return found

    def _contrastive_gradient(self, model: AudioText, audio: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss over all ranks' pairs and the gradients of this rank's ``[n, P]`` embeddings.

        The scale's ``grad`` gets this rank's share: the sum over ranks is still to come.
        """
        world, scale = self.setting.world, model.logit_scale.value
        with span(LOSS):
            found = info_nce_across_ranks(
                audio,
                text,
                scale.detach(),
                gather=world.gather,
                rank=world.rank,
                halved=self.config.halve_contrastive,
            )
        gradient_buffer(scale).add_(found.d_logit_scale)
        gradients_added((scale,))
        return found.loss, found.d_audio, found.d_text


@dataclass(frozen=True)
class _Encoded:
    """Hidden states and unit embeddings ``[b, P]`` of a micro-batch."""

    audio_hidden: Tensor
    audio_embedding: Tensor
    text_hidden: Tensor
    text_embedding: Tensor
