"""What a run is: a frozen tree of settings, one class a stage.

Every field can be set in a TOML file (``--config``) or on the command line (``--update.learning-rate 1e-4``); the
resolved tree is written into the run directory. Presets that fill it are in :mod:`.presets`.
"""

from dataclasses import dataclass, field
from typing import Literal

from ..data.dali import LoaderName
from ..data.frontend import FrontEndName
from ..kernels.backend import Backend
from ..kernels.layout import LayoutName
from ..kernels.log_mel import SAMPLE_RATE, num_patches
from ..models.by_hand import Stash
from ..models.config import AudioMAEConfig, AudioTextConfig
from .config_checks import require, require_finite
from .update_config import UpdateConfig

Precision = Literal["fp32", "bf16"]

Blocks = Literal["auto", "by_hand", "autograd"]

AudioInit = Literal["init", "random"]

RANDOM_TEXT = "random"


def _check_budget(name: str, tokens: int, longest: int, whose: str) -> None:
    expected = f"expected 0 (sizes follow the data), or at least the {longest} of {whose}"
    require(tokens == 0 or tokens >= longest, f"{name} is {tokens}; {expected}")


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """How clips reach the device."""

    loader: LoaderName = "auto"
    """Who decodes the shards, to the same batches: the loader's threads (native) or DALI; auto: the loader's threads
    where their own FLAC decoder was built, else DALI for a GPU where it can be imported."""
    frontend: FrontEndName = "kernels"
    """Who makes the log-mel: our own op, or DALI's spectrogram times our mel matrix (equal to rounding)."""
    workers: int = 4
    """Threads that decode audio."""
    prefetch_batches: int = 2
    """Batches prepared ahead of the one in use."""
    max_bad_share: float = 0.05
    """Share of an epoch's clips that may be damaged, and are replaced by others, before the run stops."""
    fixed_seconds: float = 0.0
    """Make every clip exactly this long: a longer one is cropped at a random place, a shorter one is followed by
    silence, which counts as sound. 0 leaves clips their own lengths, as the authors' published code does, which has no
    other way (src/caco/dataset.py, commit 9e5cfce): what "fixed length" is in the paper's ablation is our reading."""
    sources: tuple[str, ...] = ()
    """Sources of the shards whose clips alone are drawn, by the names that `cacophony shards stats` lists: the first
    folder of the packed path. None named takes all."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            all(self.sources) and len(set(self.sources)) == len(self.sources),
            f"data.sources is {', '.join(map(repr, self.sources))}; expected names of sources, each once",
        )
        require(
            self.fixed_seconds == 0.0 or self.fixed_seconds >= 0.2,
            f"data.fixed_seconds is {self.fixed_seconds}; expected at least 0.2, or 0 for clips of their own lengths",
        )
        require(self.workers >= 1, f"data.workers is {self.workers}; expected at least 1")
        require(self.prefetch_batches >= 1, f"data.prefetch_batches is {self.prefetch_batches}; expected at least 1")
        require(0.0 <= self.max_bad_share <= 1.0, f"data.max_bad_share is {self.max_bad_share}; expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class MaeDataConfig(LoadingConfig):
    """Stage 1's input: audio only."""

    crop_seconds: float = 15.0
    """Longer clips are cropped to this many seconds, at a random place each epoch; fixed_seconds goes before it."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_finite(self, "data.")
        super().__post_init__()
        require(self.crop_seconds >= 0.2, f"data.crop_seconds is {self.crop_seconds}; expected at least 0.2")

    @property
    def max_patches(self) -> int:
        """Patches of the longest crop."""
        return num_patches(round((self.fixed_seconds or self.crop_seconds) * SAMPLE_RATE))


@dataclass(frozen=True, kw_only=True)
class ContrastiveDataConfig(LoadingConfig):
    """Stage 2's input: clips with captions."""

    tokenizer: str = "auto"
    """A directory with a RoBERTa tokenizer or a name on the Hugging Face hub; "train" trains a byte-level BPE on the
    packed captions; "auto" takes the hub's roberta-base, or trains one where the hub cannot be reached."""
    max_text_tokens: int = 77
    """Longer captions are cut to this many tokens, <s> and </s> included."""
    synthetic_probability: float = 0.8
    """Probability of a synthetic caption where a clip has one."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_finite(self, "data.")
        super().__post_init__()
        require(self.max_text_tokens >= 3, f"data.max_text_tokens is {self.max_text_tokens}; expected at least 3")
        require(
            0.0 <= self.synthetic_probability <= 1.0,
            f"data.synthetic_probability is {self.synthetic_probability}; expected 0 to 1",
        )


@dataclass(frozen=True, kw_only=True)
class MaeObjectiveConfig:
    """Masked reconstruction (paper, section III-A)."""

    mask_ratio: float = 0.8
    """Share of the patches hidden from the encoder."""
    loss_patches: Literal["masked", "all"] = "masked"
    """Patches whose reconstruction is scored."""
    unbiased_variance: bool = True
    """Divide the variance that normalises a target patch by 255 (True) or 256."""
    stash: Literal[1, 2, 3, 6, 10] = 10
    """What a micro-batch's forward keeps for its backward, in numbers of the width's size per token and layer: 10 keeps
    everything, so nothing but norms and activations is computed twice."""
    blocks: Blocks = "auto"
    """Who differentiates the transformer blocks: we "by_hand", at any stash, or "autograd", which keeps everything;
    auto is by hand where attention is fused, and wherever the stash is below 10."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_finite(self, "objective.")
        require(0.0 < self.mask_ratio < 1.0, f"objective.mask_ratio is {self.mask_ratio}; expected 0 < ratio < 1")
        require(
            self.blocks != "autograd" or self.stash == 10,
            f"objective.stash is {self.stash}, but autograd keeps everything; set objective.blocks to by_hand, or "
            "objective.stash to 10",
        )


@dataclass(frozen=True, kw_only=True)
class ContrastiveObjectiveConfig:
    """Contrastive + captioning (paper, section III-B, eqs. 1 to 3)."""

    caption_weight: float = 1.0
    """Weight λ of the captioning loss; at 0 the network has no caption decoder, nor does the checkpoint."""
    caption_reduction: Literal["caption", "token"] = "caption"
    """Average the captioning loss over each caption's tokens, then over captions, or over all tokens at once."""
    max_patches: int = 512
    """Clips with more patches (10.24 s are 512) are seen through a random subset of this many."""
    halve_contrastive: bool = False
    """Take the mean of both directions (open_clip) instead of their sum (the paper's eq. 1)."""
    stash: Stash = 0
    """What the first forward keeps for the backward, in numbers of the width's size per token and layer: 0 keeps the
    inputs and computes the encoders again, so memory is a micro-batch's; 10 keeps everything, so nothing but norms and
    activations is computed twice; 1, 2, 3 and 6 lie between."""
    blocks: Blocks = "auto"
    """Who differentiates the transformer blocks: we "by_hand", at any stash, or "autograd", whose stash is 0 or 10;
    auto is by hand where attention is fused, and wherever autograd lacks the stash."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_finite(self, "objective.")
        require(self.caption_weight >= 0.0, f"objective.caption_weight is {self.caption_weight}; expected at least 0")
        require(self.max_patches >= 1, f"objective.max_patches is {self.max_patches}; expected at least 1")
        require(
            self.blocks != "autograd" or self.stash in (0, 10),
            f"objective.stash is {self.stash}, which autograd does not have; set objective.blocks to by_hand, or "
            "objective.stash to 0 or 10",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings both stages share."""

    update: UpdateConfig = field(default_factory=UpdateConfig)
    """Optimiser and schedule."""
    batch_size: int = 512
    """Clips of an optimiser step, over all ranks."""
    micro_batch_size: int = 64
    """Clips of one forward pass on one rank; changes memory and speed, never the result beyond rounding."""
    micro_batch_tokens: int = 0
    """Patches of one forward pass on one rank: of stage 1 visible and masked ones together, as its decoder sees them.
    A pass ends at so many patches or micro_batch_size clips, and dummy patches fill it up, so that its shapes do not
    change from step to step. 0 has no limit and no dummies: shapes follow the data. Packed layout only."""
    steps: int = 200_000
    """Optimiser steps of the run."""
    seed: int = 0
    """Names every random choice of the run: weights, order, crops, masks, captions, dropout."""
    precision: Precision = "fp32"
    """Precision of the forward and backward pass; parameters and optimiser state are always fp32."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", …; "auto" takes a GPU where there is one."""
    backend: Backend = "auto"
    """Implementation of the ops: fused, reference, or fused where there is one."""
    layout: LayoutName = "packed"
    """Compute on packed tokens (no padding) or on padded ones."""
    log_every_steps: int = 10
    """Steps between two lines of the log."""
    save_every_steps: int = 1000
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; older ones are deleted."""
    wandb: str = ""
    """Project on Weights & Biases to log to as well, with the extra `wandb`; none where empty."""
    timeout_seconds: float = 600.0
    """Seconds without a sign of life from a rank, or without progress of any, after which all end and name it."""

    def __post_init__(self) -> None:
        """Check the ranges and what must fit together."""
        for name in ("batch_size", "micro_batch_size", "steps", "log_every_steps", "save_every_steps"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        require_finite(self, "")
        require(self.timeout_seconds >= 1.0, f"timeout_seconds is {self.timeout_seconds}; expected at least 1")
        require(self.keep_checkpoints >= 1, f"keep_checkpoints is {self.keep_checkpoints}; expected at least 1")
        require(
            self.micro_batch_tokens == 0 or self.layout == "packed",
            f"micro_batch_tokens is {self.micro_batch_tokens}, but the layout is padded; set layout to packed, or "
            "micro_batch_tokens to 0",
        )
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; expected 0 to 2**63 - 1")
        require(
            self.update.warmup_steps < self.steps,
            f"update.warmup_steps ({self.update.warmup_steps}) must be less than steps ({self.steps})",
        )


@dataclass(frozen=True, kw_only=True)
class MaeRunConfig(RunConfig):
    """Stage 1: the audio masked autoencoder."""

    model: AudioMAEConfig = field(default_factory=AudioMAEConfig)
    """The network."""
    data: MaeDataConfig = field(default_factory=MaeDataConfig)
    """The input."""
    objective: MaeObjectiveConfig = field(default_factory=MaeObjectiveConfig)
    """The loss."""

    def __post_init__(self) -> None:
        """Check that a crop fits into a micro-batch."""
        super().__post_init__()
        _check_budget("micro_batch_tokens", self.micro_batch_tokens, self.data.max_patches, "data.crop_seconds")


@dataclass(frozen=True, kw_only=True)
class ContrastiveRunConfig(RunConfig):
    """Stage 2: the audio-text model."""

    model: AudioTextConfig = field(default_factory=AudioTextConfig)
    """The network."""
    data: ContrastiveDataConfig = field(default_factory=ContrastiveDataConfig)
    """The input."""
    objective: ContrastiveObjectiveConfig = field(default_factory=ContrastiveObjectiveConfig)
    """The loss."""
    micro_batch_text_tokens: int = 0
    """Caption tokens of one forward pass on one rank, where micro_batch_tokens is set, as that counts patches."""
    audio_init: AudioInit = "init"
    """First weights of the audio encoder: what --init gives (random where it is left out), or "random", which refuses
    an --init."""
    text_init: str = RANDOM_TEXT
    """First weights of the text encoder: "random", or a RoBERTa, in a local directory or on the Hugging Face hub."""

    def __post_init__(self) -> None:
        """Check that captions fit the position table, and clips with their captions into a micro-batch."""
        super().__post_init__()
        patches, tokens = self.micro_batch_tokens, self.micro_batch_text_tokens
        require(
            self.model.caption_layers > 0 or self.objective.caption_weight == 0.0,
            f"model.caption_layers is 0, but objective.caption_weight is {self.objective.caption_weight}; set "
            "objective.caption_weight to 0, or model.caption_layers to at least 1",
        )
        _check_budget("micro_batch_tokens", patches, self.objective.max_patches, "objective.max_patches")
        _check_budget("micro_batch_text_tokens", tokens, self.data.max_text_tokens, "data.max_text_tokens")
        require(
            (patches == 0) == (tokens == 0),
            f"micro_batch_tokens is {patches} and micro_batch_text_tokens {tokens}; set both, or neither",
        )
        require(
            self.data.max_text_tokens <= self.model.text.max_positions,
            f"data.max_text_tokens ({self.data.max_text_tokens}) must not exceed model.text.max_positions "
            f"({self.model.text.max_positions})",
        )


Stage = Literal["mae", "contrastive"]
RUN_CONFIGS: dict[Stage, type[MaeRunConfig] | type[ContrastiveRunConfig]] = {
    "mae": MaeRunConfig,
    "contrastive": ContrastiveRunConfig,
}
