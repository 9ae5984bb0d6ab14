"""Attention through ``torch.nn.functional.scaled_dot_product_attention``: what plain PyTorch has to offer, for benches.

Self-attention under a causal mask is given no mask of keys: padding lies at the end of a sequence, where no valid query
sees it, and FlashAttention can run, which takes no mask. Elsewhere keys of padding are masked, by what is added to the
scores, and the memory-efficient kernels run. cuDNN is excluded: its backward has given NaN on H100 and H200 (PyTorch
issue 196678).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .dropout import DropoutKey
from .layout import Layout, Packed, pad, padded_layout, unpad

_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_layout: Layout,
    key_layout: Layout,
    *,
    causal: bool,
    dropout: DropoutKey | None,
    all_valid: bool = False,
) -> Tensor:
    """Compute :func:`~.attention.attention` for valid queries; packed sequences are padded around it, to ``max_len``.

    ``all_valid`` says that no key is padding, so that none is masked. Dropout masks are PyTorch's own, another for
    every sequence and head, and a second pass draws others. Raises ValueError where ``causal`` and there are not as
    many keys as queries.
    """
    if isinstance(query_layout, Packed) and isinstance(key_layout, Packed):
        padded = pad(query, query_layout), pad(key, key_layout), pad(value, key_layout)
        layouts = padded_layout(query_layout), padded_layout(key_layout)
        out = attention_sdpa(*padded, *layouts, causal=causal, dropout=dropout, all_valid=all_valid)
        return unpad(out, query_layout)
    query, key, value = (x.transpose(-3, -2) for x in (query, key, value))  # [B, H, L, d]
    if causal and query.shape[-2] != key.shape[-2]:
        raise ValueError(f"attention_sdpa: key has {key.shape[-2]} slots, expected {query.shape[-2]} as query: causal")
    mask = None if causal or all_valid else _key_mask(query, key_layout)
    rate = dropout.rate if dropout else 0.0
    with sdpa_kernel(_KERNELS):
        out = F.scaled_dot_product_attention(query, key, value, mask, rate, is_causal=causal)
    return out.transpose(-3, -2)


def _key_mask(query: Tensor, key_layout: Layout) -> Tensor:
    """Return what is added to scores, ``[B, 1, Lq, Lk]``: finite, so that a row without a key is finite too."""
    hidden = ~key_layout.valid[:, None, None, :]
    mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device)
    return mask.masked_fill(hidden, torch.finfo(query.dtype).min).expand(-1, -1, query.shape[-2], -1)
