"""Steps that blocks by hand are made of: a module's parameters and gradient buffers around :mod:`~.kernels.block_ops`.

``undo_*`` is the backward of a step: it adds the gradients of the parameters to their ``grad`` and returns that of the
step's input.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..kernels.activation import Activation
from ..kernels.attention import AttentionSaved, attention_bwd, attention_fwd
from ..kernels.block_ops import (
    Dropout,
    Normed,
    linear_activation_forward,
    linear_activation_input_gradient,
    linear_add_forward,
    linear_forward,
    linear_input_gradient,
    linear_parameter_gradients,
    linear_weight_gradient,
    norm_backward,
    norm_forward,
)
from ..kernels.dropout import DropoutKey
from ..kernels.layout import Layout
from ..kernels.precision import gradient_dtype
from .block import CrossAttention, PostNormBlock, PreNormBlock, SelfAttention
from .layers import LayerNorm, Linear

Stash = Literal[0, 1, 2, 3, 6, 10]


@dataclass(frozen=True)
class Attended:
    """What attention returned: ``out`` ``[..., H, d]``, and what its provider wants back."""

    out: Tensor
    saved: AttentionSaved


def gradient_buffer(parameter: nn.Parameter) -> Tensor:
    """Return the parameter's ``grad``, made of zeros where there is none, in the dtype autograd wants it in."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter, dtype=gradient_dtype(parameter))
    return parameter.grad


def norm(
    own: LayerNorm, x: Tensor | None, residual: Tensor, key: DropoutKey | None = None, layout: Layout | None = None
) -> Normed:
    """Normalise residual + dropout(x), or the residual alone where ``x`` is None."""
    return norm_forward(x, residual, own.weight, own.bias, own.eps, dropout=_dropout(key, layout))


def undo_norm(
    own: LayerNorm,
    d_normed: Tensor,
    d_h: Tensor | None,
    forward: Normed,
    key: DropoutKey | None = None,
    layout: Layout | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and residual; ``d_h`` reaches their sum from elsewhere."""
    buffers = gradient_buffer(own.weight), gradient_buffer(own.bias)
    return norm_backward(d_normed, d_h, forward, own.weight, *buffers, dropout=_dropout(key, layout))


def linear(own: Linear, x: Tensor) -> Tensor:
    """Return x Wᵀ + b."""
    return linear_forward(x, own.weight, own.bias)


def linear_activated(own: Linear, x: Tensor, kind: Activation, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Return activation(x Wᵀ + b), and with ``keep`` what it read, else None."""
    return linear_activation_forward(x, own.weight, own.bias, kind, keep)


def linear_onto(own: Linear, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a residual and an update that sum to residual + x Wᵀ + b.

    No update is left where one kernel multiplies and adds; else the norm that reads the sum adds, which costs no pass.
    """
    added = linear_add_forward(x, own.weight, own.bias, residual)
    return (residual, linear(own, x)) if added is None else (added, None)


def undo_linear(own: Linear, d_y: Tensor, x: Tensor, d_residual: Tensor | None = None) -> Tensor:
    """Return the gradient of x, added to ``d_residual``, which reaches x another way, where there is one."""
    linear_parameter_gradients(d_y, x, gradient_buffer(own.weight), gradient_buffer(own.bias))
    return linear_input_gradient(d_y, own.weight, d_residual)


def undo_feed_forward(
    block: PreNormBlock | PostNormBlock,
    d_out: Tensor,
    x: Tensor,
    inside: Tensor,
    activation: Activation,
    d_residual: Tensor | None = None,
) -> Tensor:
    """Return the gradient of ``x``, what the feed-forward read, added to ``d_residual``; ``inside`` is W₁ x + b₁.

    The gradient of W₂ comes second: it reads the activation, made again in the pass that makes the gradient of inside
    and, as its sum, that of b₁.
    """
    first, second = block.mlp_in, block.mlp_out
    d_inside, activated, d_bias = linear_activation_input_gradient(d_out, second.weight, inside, activation)
    linear_parameter_gradients(d_out, activated, gradient_buffer(second.weight), gradient_buffer(second.bias))
    linear_weight_gradient(d_inside, x, gradient_buffer(first.weight))
    gradient_buffer(first.bias).add_(d_bias)
    return linear_input_gradient(d_inside, first.weight, d_residual)


def attend(attention: SelfAttention, qkv: Tensor, layout: Layout, key: DropoutKey | None) -> Attended:
    """Attend within each sequence; ``qkv`` ``[..., 3 D]``, ``key`` of the attention weights' dropout."""
    query, keys, values = _split(qkv, 3, attention.heads)
    return Attended(*attention_fwd(query, keys, values, layout, layout, causal=attention.causal, dropout=key))


def undo_attend(
    attention: SelfAttention, d_flat: Tensor, qkv: Tensor, attended: Attended, layout: Layout, key: DropoutKey | None
) -> Tensor:
    """Return the gradient of ``qkv`` from that of what attention returned, ``[..., D]``."""
    query, keys, values = _split(qkv, 3, attention.heads)
    d_out = d_flat.unflatten(-1, (attention.heads, -1))
    d_qkv = torch.empty_like(qkv)
    attention_bwd(
        *(d_out, query, keys, values, attended.out, attended.saved, layout, layout),
        causal=attention.causal,
        dropout=key,
        gradients=_split(d_qkv, 3, attention.heads),
    )
    return d_qkv


def cross_attend(
    attention: CrossAttention,
    query: Tensor,
    key_value: Tensor,
    layout: Layout,
    context_layout: Layout,
    key: DropoutKey | None,
) -> Attended:
    """Attend from ``query`` ``[..., D]`` to a context's ``key_value`` ``[..., 2 D]``."""
    (queries,), (keys, values) = _split(query, 1, attention.heads), _split(key_value, 2, attention.heads)
    return Attended(*attention_fwd(queries, keys, values, layout, context_layout, dropout=key))


def undo_cross_attend(
    attention: CrossAttention,
    d_flat: Tensor,
    query: Tensor,
    key_value: Tensor,
    attended: Attended,
    layout: Layout,
    context_layout: Layout,
    key: DropoutKey | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``query`` and ``key_value``."""
    (queries,), (keys, values) = _split(query, 1, attention.heads), _split(key_value, 2, attention.heads)
    d_out = d_flat.unflatten(-1, (attention.heads, -1))
    d_query, d_key_value = torch.empty_like(query), torch.empty_like(key_value)
    (d_queries,), (d_keys, d_values) = _split(d_query, 1, attention.heads), _split(d_key_value, 2, attention.heads)
    attention_bwd(
        *(d_out, queries, keys, values, attended.out, attended.saved, layout, context_layout),
        dropout=key,
        gradients=(d_queries, d_keys, d_values),
    )
    return d_query, d_key_value


def _dropout(key: DropoutKey | None, layout: Layout | None) -> Dropout | None:
    return Dropout(key, layout) if key is not None and key.rate > 0.0 and layout is not None else None


def _split(projected: Tensor, parts: int, heads: int) -> Any:
    """Cut ``[..., parts · D]`` into ``parts`` views ``[..., heads, D / heads]``."""
    return projected.unflatten(-1, (parts, heads, -1)).unbind(-3)
