"""FlashAttention 2 (package ``flash_attn``, 2.7 or newer).

FlashAttention 4 alone, or a build without its CUDA extension, shares the package's name and lacks what is called here.
Never run by us on a GPU yet.
"""

import re
from types import ModuleType

from torch import Tensor

from .provider import Problem, Provider, Sequences, flash_refusal, import_guarded

_MODULE = "flash_attn.flash_attn_interface"


class Flash2(Provider):
    """``_flash_attn_varlen_forward`` and ``_flash_attn_varlen_backward``, in its deterministic mode."""

    name = "flash2"

    def unavailable(self) -> str | None:
        """Say why the functions are not there."""
        for name in ("flash_attn", _MODULE):
            module = import_guarded(name)
            if isinstance(module, str):
                return module
        version = str(getattr(import_guarded("flash_attn"), "__version__", "of unknown version"))
        if not re.match(r"2\.([7-9]|\d\d)", version):
            return f"is {version}, expected 2.7 or a newer 2"
        return None

    def refusal(self, problem: Problem) -> str | None:
        """Say what it does not take."""
        return flash_refusal(problem)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Call the forward function."""
        out, lse, *_ = _interface()._flash_attn_varlen_forward(
            *(query, key, value),
            dropout_p=0.0,
            **_arguments(query, sequences),
        )
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
        """Call the backward function, which writes into ``gradients``."""
        _interface()._flash_attn_varlen_backward(
            *(d_out, query, key, value, out, statistics, *gradients),
            dropout_p=0.0,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=True,
            **_arguments(query, sequences),
        )


def _interface() -> ModuleType:
    module = import_guarded(_MODULE)
    if isinstance(module, str):
        raise RuntimeError(f"flash2: {module}")
    return module


def _arguments(query: Tensor, sequences: Sequences) -> dict[str, object]:
    return {
        "cu_seqlens_q": sequences.query_offsets,
        "cu_seqlens_k": sequences.key_offsets,
        "max_seqlen_q": sequences.max_query,
        "max_seqlen_k": sequences.max_key,
        "softmax_scale": query.shape[-1] ** -0.5,
        "causal": sequences.causal,
    }
