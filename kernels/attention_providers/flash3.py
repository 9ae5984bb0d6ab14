"""FlashAttention 3 (package ``flash_attn_3``), for Hopper GPUs; it has no dropout.

Its torch ops are called, whose names and arguments have stayed the same while the Python functions above them changed
from release to release. Never run by us on a GPU yet.
"""

import torch
from torch import Tensor

from .provider import Problem, Provider, Sequences, flash_refusal, import_guarded


class Flash3(Provider):
    """``torch.ops.flash_attn_3.fwd`` and ``.bwd``, in its deterministic mode."""

    name = "flash3"

    def unavailable(self) -> str | None:
        """Say why the ops are not there."""
        module = import_guarded("flash_attn_3._C")
        if isinstance(module, str):
            return module
        if not (hasattr(torch.ops.flash_attn_3, "fwd") and hasattr(torch.ops.flash_attn_3, "bwd")):
            return "registers no ops fwd and bwd: a newer release is needed"
        return None

    def refusal(self, problem: Problem) -> str | None:
        """Say what it does not take; on other GPUs than Hopper FlashAttention 2 is the one that is tuned."""
        if problem.device_type == "cuda" and problem.capability[0] != 9:
            return f"is for compute capability 9.0, this GPU has {'.'.join(map(str, problem.capability))}"
        return flash_refusal(problem, least_capability=9, largest_head_dim=192)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Call ``fwd`` without splitting keys, which would change the order of the sum with the batch."""
        out, lse, *_ = torch.ops.flash_attn_3.fwd(query, key, value, num_splits=1, **_arguments(query, sequences))
        return out, lse

    def backward(
        self,
        d_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        statistics: Tensor,
        sequences: Sequences,
        gradients: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Call ``bwd``, which writes into ``gradients``."""
        d_query, d_key, d_value = gradients
        torch.ops.flash_attn_3.bwd(
            *(d_out, query, key, value, out, statistics),
            dq=d_query,
            dk=d_key,
            dv=d_value,
            deterministic=True,
            **_arguments(query, sequences),
        )


def _arguments(query: Tensor, sequences: Sequences) -> dict[str, object]:
    return {
        "cu_seqlens_q": sequences.query_offsets,
        "cu_seqlens_k": sequences.key_offsets,
        "max_seqlen_q": sequences.max_query,
        "max_seqlen_k": sequences.max_key,
        "softmax_scale": query.shape[-1] ** -0.5,
        "is_causal": sequences.causal,
    }
