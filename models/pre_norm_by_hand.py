"""The pre-norm block by hand, beside :class:`~.block.PreNormBlock`: x += sublayer(norm(x))."""

from dataclasses import dataclass

from torch import Tensor

from ..kernels.layout import Layout
from .block import PreNormBlock
from .by_hand import (
    Attended,
    Stash,
    attend,
    linear,
    linear_activated,
    linear_onto,
    norm,
    undo_attend,
    undo_feed_forward,
    undo_linear,
    undo_norm,
)


@dataclass(frozen=True)
class PreNormKept:
    """What a pre-norm block's forward left for its backward; None is made again."""

    h: Tensor
    middle: Tensor | None
    attended: Attended | None
    qkv: Tensor | None
    inside: Tensor | None


def pre_norm_forward(
    block: PreNormBlock, residual: Tensor, update: Tensor | None, layout: Layout, stash: Stash
) -> tuple[Tensor, Tensor | None, PreNormKept]:
    """h = residual + update; m = h + attention(norm(h)); returns m, W₂ silu(W₁ norm(m)) and what is kept.

    The sum of the two is the block's output: the next block's norm adds them on the way, or the product did, and the
    first is the sum and the second None.
    """
    first = norm(block.attention_norm, update, residual)
    qkv = linear(block.attention.qkv, first.normed)
    attended = attend(block.attention, qkv, layout, None)
    residual, update = linear_onto(block.attention.out, attended.out.flatten(-2), first.h)
    second = norm(block.mlp_norm, update, residual)
    activated, inside = linear_activated(block.mlp_in, second.normed, "silu", stash >= 10)
    kept = PreNormKept(
        first.h,
        second.h if stash >= 2 else None,
        attended if stash >= 3 else None,
        qkv if stash >= 6 else None,
        inside,
    )
    return *linear_onto(block.mlp_out, activated, second.h), kept


def pre_norm_backward(block: PreNormBlock, d_y: Tensor, kept: PreNormKept, layout: Layout) -> Tensor:
    """Return the gradient of h (of residual and update alike) from that of the block's output."""
    first = norm(block.attention_norm, None, kept.h)
    qkv = linear(block.attention.qkv, first.normed) if kept.qkv is None else kept.qkv
    attended = attend(block.attention, qkv, layout, None) if kept.attended is None else kept.attended
    flat = attended.out.flatten(-2)
    if kept.middle is None:
        residual, update = linear_onto(block.attention.out, flat, kept.h)
        second = norm(block.mlp_norm, update, residual)
    else:
        second = norm(block.mlp_norm, None, kept.middle)
    inside = linear(block.mlp_in, second.normed) if kept.inside is None else kept.inside

    d_normed = undo_feed_forward(block, d_y, second.normed, inside, "silu")
    d_projected, d_middle = undo_norm(block.mlp_norm, d_normed, d_y, second)
    d_flat = undo_linear(block.attention.out, d_projected, flat)
    d_qkv = undo_attend(block.attention, d_flat, qkv, attended, layout, None)
    d_normed = undo_linear(block.attention.qkv, d_qkv, first.normed)
    _, d_h = undo_norm(block.attention_norm, d_normed, d_middle, first)
    return d_h
