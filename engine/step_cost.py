"""What a step costs in FLOPs, in bytes of state and in bytes sent between ranks, from its configuration."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..kernels.choose_patches import keep_at_most, keep_fraction
from ..models.audio_mae import AudioMAE
from ..models.audio_text import AudioText
from ..models.block import PostNormBlock, PreNormBlock
from ..models.by_hand import Stash
from ..models.stash import recomputed_flops
from .config import ContrastiveRunConfig, MaeRunConfig
from .gpus import Gpu

RunConfigOfStage = MaeRunConfig | ContrastiveRunConfig
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Flops:
    """FLOPs of one gradient on one rank: ``model`` is forward and backward, ``recomputed`` what comes on top."""

    model: int
    recomputed: int

    @property
    def recomputed_share(self) -> float:
        """Recomputation as a share of the model's FLOPs."""
        return self.recomputed / max(self.model, 1)


@dataclass(frozen=True)
class Transfer:
    """A collective of a step: ``bytes`` that every rank sends, over all gradients of the step.

    ``beside``: so many backward passes of a step's last micro-batches run while it is under way, an equal part beside
    each; 0 where computation waits for all of it.
    """

    name: str
    bytes: int
    beside: int = 0

    def seconds(self, gpu: Gpu, gpus: int) -> float:
        """Seconds at the links' peak, in rings: through the network where there is more than one node of 8 GPUs.

        Rings share a node's network adapters, so each runs at the smaller of NVLink and all adapters together.
        """
        network = gpu.network_bandwidth * GPUS_PER_NODE
        return self.bytes / (gpu.link_bandwidth if gpus <= GPUS_PER_NODE else min(gpu.link_bandwidth, network))


def gradients_per_step(config: RunConfigOfStage) -> int:
    """Return 2 where the configuration asks for SAM, else 1."""
    return 2 if config.update.rho > 0.0 else 1


def gradient_flops(model: nn.Module, config: RunConfigOfStage, patches: Tensor, text_tokens: Tensor) -> Flops:
    """FLOPs of a gradient over one rank's clips of ``patches`` and captions of ``text_tokens`` (int64 ``[b]`` each)."""
    if isinstance(config, MaeRunConfig):
        assert isinstance(model, AudioMAE)
        return _mae_flops(model, config, patches)
    assert isinstance(model, AudioText)
    return _contrastive_flops(model, config, patches, text_tokens)


def _mae_flops(model: AudioMAE, config: MaeRunConfig, patches: Tensor) -> Flops:
    visible = keep_fraction(patches, 1.0 - config.objective.mask_ratio)
    stash = None if config.objective.blocks == "autograd" else config.objective.stash
    again = recomputed_mae_flops(model, visible, patches, stash)
    return Flops(3 * model.flops(visible, patches - visible), again)


def _contrastive_flops(model: AudioText, config: ContrastiveRunConfig, patches: Tensor, text_tokens: Tensor) -> Flops:
    patches = keep_at_most(patches, config.objective.max_patches)
    ranks = config.batch_size // max(len(patches), 1)
    similarity = similarity_flops(len(patches), config.batch_size, ranks, model.config.projection_width)
    by_hand = config.objective.blocks != "autograd"
    again = recomputed_contrastive_flops(model, patches, text_tokens, config.objective.stash, by_hand)
    return Flops(3 * model.flops(patches, text_tokens) + similarity.model, again + similarity.recomputed)


def similarity_flops(clips: int, batch_size: int, ranks: int, width: int) -> Flops:
    """FLOPs of a rank's share of InfoNCE and its gradients: ``clips`` of ``batch_size`` pairs, embeddings of ``width``.

    The similarities are never kept (:mod:`cacophony.kernels.info_nce_ranks`): one rank computes them twice. One of
    several, which exchange no gradients, computes those of its rows twice and those of its columns once.
    """
    product = 2 * clips * batch_size * width
    return Flops(3 * product, (1 if ranks == 1 else 2) * product)


def recomputed_mae_flops(model: AudioMAE, visible: Tensor, patches: Tensor, stash: Stash | None) -> int:
    """FLOPs that stage 1's backward spends on computing again; int64 ``[b]`` patches seen by encoder and by decoder.

    ``stash`` is None where autograd differentiates the blocks, which keeps everything.
    """
    if stash is None:
        return 0
    return _recomputed(model.encoder.blocks, visible, stash) + _recomputed(model.decoder.blocks, patches, stash)


def recomputed_contrastive_flops(
    model: AudioText, patches: Tensor, text_tokens: Tensor, stash: Stash, by_hand: bool
) -> int:
    """FLOPs that stage 2's backward spends on computing again; int64 ``[b]`` patches seen and caption tokens.

    At stash 0 both towers run once more. Blocks ``by_hand`` keep what a micro-batch's decoder computes, but for the
    keys and values of the patches.
    """
    again = model.embedding_flops(patches, text_tokens) if stash == 0 else 0
    if by_hand:
        again += _recomputed(model.audio_encoder.blocks, patches, stash or 10)
        again += _recomputed(model.text_encoder.blocks, text_tokens, stash or 10)
        if model.config.caption_layers:
            again += _recomputed(model.caption_decoder.blocks, text_tokens, 10, patches)
    return again


def _recomputed(blocks: nn.ModuleList, lengths: Tensor, stash: Stash, context_lengths: Tensor | None = None) -> int:
    first = blocks[0]  # all of a stack are alike, and a run asks at every gradient
    assert isinstance(first, PreNormBlock | PostNormBlock)
    return len(blocks) * recomputed_flops(first, lengths, stash, context_lengths)


def transfers(config: RunConfigOfStage, gradient_bytes: int, copy_bytes: int, ranks: int) -> list[Transfer]:
    """Return the collectives of a step on so many ranks.

    ``gradient_bytes`` of the whole gradient, ``copy_bytes`` of the weights that a rank computes with.
    """
    if ranks == 1:
        return []
    times, share = gradients_per_step(config), (ranks - 1) / ranks
    if is_shared(config, ranks):
        found = [
            Transfer("gradients, summed in float32", int(times * share * gradient_bytes), beside=times),
            Transfer("weights to compute with", int(times * share * copy_bytes)),
        ]
    else:
        found = [Transfer("gradients, summed in float32", int(2 * share * gradient_bytes), beside=1)]
    if isinstance(config, ContrastiveRunConfig):
        embeddings = 2 * config.batch_size * config.model.projection_width * 4
        found.append(Transfer("embeddings, gathered in float32", int(times * share * embeddings)))
    return found


def is_shared(config: RunConfigOfStage, ranks: int) -> bool:
    """Whether ranks share master, moments and update; each that follows its own gradient needs all of them."""
    return ranks > 1 and config.update.perturbation == "global"
