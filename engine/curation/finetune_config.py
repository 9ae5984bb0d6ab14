"""How a cleaner is trained."""

from dataclasses import dataclass

from ...errors import InputError


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """How a cleaner is trained."""

    held_out: float = 0.05
    """Share of the pairs that are scored and not learnt from."""
    flagged: bool = False
    """Whether captions with flags are learnt from, too."""
    epochs: int = 20
    """At most."""
    patience: int = 3
    """Epochs without a lower held-out loss after which training ends."""
    batch_size: int = 64
    """Pairs behind an update, of all ranks together."""
    micro_batch_size: int = 8
    """Pairs that a rank computes at a time."""
    learning_rate: float = 1e-4
    """Of AdamW, constant after the warm-up."""
    warmup_steps: int = 50
    """Updates over which the learning rate rises from 0."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip_norm: float = 1.0
    """Longest gradient."""
    max_target_tokens: int = 64
    """Longest caption, in tokens."""
    gradient_checkpointing: bool = False
    """Compute a block again in the backward pass instead of keeping what is in it."""
    seed: int = 0
    """Of split, order and dropout."""

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size", "micro_batch_size", "max_target_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name.replace('_', '-')} is {getattr(self, name)}; expected 1 or more")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name.replace('_', '-')} is {getattr(self, name)}; expected more than 0")
        if not (0 < self.held_out < 1 and self.weight_decay >= 0 and self.warmup_steps >= 0):
            raise InputError(
                f"held-out is {self.held_out}, weight-decay {self.weight_decay}, warmup-steps {self.warmup_steps}; "
                "expected 0 < held-out < 1, and 0 or more of the others"
            )
