"""xFormers' attention under a block-diagonal mask (0.0.35), through its FlashAttention 2 operators.

These are the installed ``flash_attn``'s kernels, or PyTorch's where there is none; with ``flash_attn`` xFormers does
not ask for their deterministic mode. Importing ``xformers.ops`` fails where ``flash_attn`` is a stub or FlashAttention
4 alone. Never run by us on a GPU yet.
"""

from types import ModuleType
from typing import Any

from torch import Tensor

from .provider import Problem, Provider, Sequences, flash_refusal, import_guarded
from .torch_flash import deterministic

_MODULE = "xformers.ops.fmha"


class XformersFlash(Provider):
    """``memory_efficient_attention_forward_requires_grad`` and ``memory_efficient_attention_backward``."""

    name = "xformers"

    def unavailable(self) -> str | None:
        """Say why the operators are not there."""
        module = import_guarded(_MODULE)
        if isinstance(module, str):
            return module
        if not (module.flash.FwOp.is_available() and module.flash.BwOp.is_available()):
            return "has no flash operators in this build of xformers"
        return None

    def refusal(self, problem: Problem) -> str | None:
        """Say what it does not take."""
        return flash_refusal(problem)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Call the forward function on a batch of one; its log-sum has that dimension too."""
        fmha = _fmha()
        out, lse = fmha.memory_efficient_attention_forward_requires_grad(
            *(tensor[None] for tensor in (query, key, value)),
            attn_bias=_mask(fmha, query, key, sequences),
            scale=query.shape[-1] ** -0.5,
            op=fmha.flash.FwOp,
        )
        return out[0], lse[0]

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
        """Call the backward function, which allocates, and copy."""
        fmha = _fmha()
        with deterministic():
            found = fmha.memory_efficient_attention_backward(
                *(tensor[None] for tensor in (d_out, out, statistics, query, key, value)),
                attn_bias=_mask(fmha, query, key, sequences),
                scale=query.shape[-1] ** -0.5,
                op=fmha.flash.BwOp,
            )
        for gradient, computed in zip(gradients, found, strict=True):
            gradient.copy_(computed[0])


def _fmha() -> ModuleType:
    module = import_guarded(_MODULE)
    if isinstance(module, str):
        raise RuntimeError(f"xformers: {module}")
    return module


def _mask(fmha: ModuleType, query: Tensor, key: Tensor, sequences: Sequences) -> Any:
    """Build the mask from offsets on the device.

    Its host copy of them is given as (0, T): the flash operators look only at whether both sides have the same one, and
    reading the offsets back would make the device wait.
    """
    sides = (
        (sequences.query_offsets, sequences.max_query, query.shape[0]),
        (sequences.key_offsets, sequences.max_key, key.shape[0]),
    )
    lengths = [
        fmha.attn_bias._SeqLenInfo(seqstart=offsets, max_seqlen=longest, min_seqlen=0, seqstart_py=[0, total])
        for offsets, longest, total in sides
    ]
    kind = fmha.attn_bias.BlockDiagonalCausalMask if sequences.causal else fmha.attn_bias.BlockDiagonalMask
    return kind(q_seqinfo=lengths[0], k_seqinfo=lengths[1])
