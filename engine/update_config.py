"""How a run's parameters are updated: SAM, AdamW and the learning rate."""

from dataclasses import dataclass
from typing import Literal

from .config_checks import require, require_finite


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """AdamW, its schedule, and SAM."""

    learning_rate: float = 2e-4
    """Peak learning rate, reached at the end of the warm-up."""
    final_learning_rate: float = 1e-6
    """Learning rate at the last step, the end of the cosine."""
    warmup_steps: int = 10_000
    """Steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.01
    """Decoupled decay of every parameter."""
    beta1: float = 0.9
    """Decay of the gradient's running mean."""
    beta2: float = 0.999
    """Decay of the squared gradient's running mean."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    rho: float = 0.0
    """Radius of SAM's ascent step, in the norm over all parameters; 0 trains without SAM."""
    clip_norm: float = 0.0
    """A gradient whose norm over all parameters is larger is scaled to it (SAM's second one); 0 scales none."""
    no_decay: Literal["none", "vectors", "vectors_and_tables"] = "none"
    """Parameters without weight decay: none, those of fewer than two dimensions (biases, norms, the logit scale, pool
    queries), or these and embedding tables."""
    perturbation: Literal["global", "local"] = "global"
    """SAM's ascent follows the gradient of the global batch, or on each rank that rank's share of it (m-SAM), which
    saves a sum over ranks; but then every rank holds all weights and moments, and updates them all."""
    ascent: Literal["gradient", "momentum"] = "gradient"
    """SAM's ascent follows a gradient computed for it, or AdamW's running mean (MSAM), which costs no gradient."""
    ascent_fraction: float = 1.0
    """Share of each rank's batch, its first clips, on which SAM's ascent gradient is computed; 1 takes all."""
    sam_every: int = 1
    """SAM at every so manieth step, from the first; plain AdamW at those between."""
    bucket_mib: float = 32.0
    """MiB of the float32 gradient that ranks sum at once, while the backward pass goes on; 32 are about a block of the
    paper's networks. A larger parameter is summed by itself."""
    max_skipped_in_a_row: int = 50
    """The run stops after this many consecutive steps whose gradient was not finite."""
    implementation: Literal["arena", "per_tensor"] = "arena"
    """Flat buffers and fused kernels, never waiting for the device; or plain SAM and torch.optim.AdamW tensor by
    tensor, their rival, which knows none of clip_norm, no_decay, perturbation, ascent, ascent_fraction, sam_every,
    bucket_mib."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_finite(self, "update.")
        require(self.rho >= 0.0, f"update.rho is {self.rho}; expected at least 0 (0 trains without SAM)")
        require(self.learning_rate > 0.0, f"update.learning_rate is {self.learning_rate}; expected more than 0")
        require(
            0.0 <= self.final_learning_rate <= self.learning_rate,
            f"update.final_learning_rate is {self.final_learning_rate}; expected 0 to update.learning_rate "
            f"({self.learning_rate})",
        )
        require(self.warmup_steps >= 0, f"update.warmup_steps is {self.warmup_steps}; expected at least 0")
        require(self.weight_decay >= 0.0, f"update.weight_decay is {self.weight_decay}; expected at least 0")
        require(self.eps > 0.0, f"update.eps is {self.eps}; expected more than 0")
        require(self.clip_norm >= 0.0, f"update.clip_norm is {self.clip_norm}; expected at least 0 (0 scales none)")
        require(
            0.0 < self.ascent_fraction <= 1.0,
            f"update.ascent_fraction is {self.ascent_fraction}; expected more than 0, at most 1",
        )
        require(self.sam_every >= 1, f"update.sam_every is {self.sam_every}; expected at least 1")
        self._check_fit()
        require(self.bucket_mib > 0.0, f"update.bucket_mib is {self.bucket_mib}; expected more than 0")
        require(self.max_skipped_in_a_row >= 1, "update.max_skipped_in_a_row must be at least 1")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0.0 <= value < 1.0, f"update.{name} is {value}; expected 0 <= {name} < 1")

    def _check_fit(self) -> None:
        """Refuse a setting that another one leaves without effect."""
        of_sam = {"perturbation": "global", "ascent": "gradient", "ascent_fraction": 1.0, "sam_every": 1}
        of_arena = {"clip_norm": 0.0, "no_decay": "none", "bucket_mib": 32.0, **of_sam}
        for name, default in of_arena.items():
            value = getattr(self, name)
            if value == default:
                continue
            require(
                self.implementation == "arena",
                f"update.{name} is {value}, which per_tensor does not have; set update.implementation to arena",
            )
            require(
                name not in of_sam or self.rho > 0.0, f"update.{name} is {value}, but update.rho is 0; set update.rho"
            )
            require(
                self.ascent == "gradient" or name not in ("perturbation", "ascent_fraction"),
                f"update.{name} is {value}, but momentum needs no gradient to ascend; set update.ascent to gradient",
            )
