"""The post-norm block by hand, beside :class:`~.block.PostNormBlock`: x = norm(x + dropout(sublayer(x)))."""

from dataclasses import dataclass

from torch import Tensor

from ..kernels.dropout import DropoutKey
from ..kernels.layout import Layout
from .block import PostNormBlock
from .by_hand import (
    Attended,
    Stash,
    attend,
    cross_attend,
    linear,
    linear_activated,
    norm,
    undo_attend,
    undo_cross_attend,
    undo_feed_forward,
    undo_linear,
    undo_norm,
)


@dataclass(frozen=True)
class PostNormKept:
    """What a post-norm block's forward left for its backward; None is made again.

    ``sums`` are those before the norms, in order: after self-attention, after cross-attention if any, after the
    feed-forward.
    """

    x: Tensor
    sums: list[Tensor] | None
    attended: Attended | None
    cross_attended: Attended | None
    qkv: Tensor | None
    query: Tensor | None
    inside: Tensor | None


def post_norm_forward(
    block: PostNormBlock,
    x: Tensor,
    layout: Layout,
    stash: Stash,
    key: DropoutKey | None,
    context: Tensor | None = None,
    context_layout: Layout | None = None,
) -> tuple[Tensor, PostNormKept]:
    """x = norm(x + dropout(sublayer(x))) for self-attention, cross-attention if any, feed-forward."""
    keys = [key.at(place) if key else None for place in range(5)]
    qkv = linear(block.attention.qkv, x)
    attended = attend(block.attention, qkv, layout, keys[0])
    projected = linear(block.attention.out, attended.out.flatten(-2))
    first = norm(block.attention_norm, projected, x, keys[1], layout)
    last, sums, query, cross_attended = first, [first.h], None, None
    if block.cross_attention is not None:
        assert context is not None
        assert context_layout is not None
        query = linear(block.cross_attention.query, first.normed)
        key_value = linear(block.cross_attention.kv, context)
        cross_attended = cross_attend(block.cross_attention, query, key_value, layout, context_layout, keys[2])
        projected = linear(block.cross_attention.out, cross_attended.out.flatten(-2))
        last = norm(block.cross_attention_norm, projected, first.normed, keys[3], layout)
        sums.append(last.h)
    activated, inside = linear_activated(block.mlp_in, last.normed, "gelu", stash >= 10)
    out = norm(block.mlp_norm, linear(block.mlp_out, activated), last.normed, keys[4], layout)
    kept = PostNormKept(
        x,
        [*sums, out.h] if stash >= 2 else None,
        attended if stash >= 3 else None,
        cross_attended if stash >= 3 else None,
        qkv if stash >= 6 else None,
        query if stash >= 6 else None,
        inside,
    )
    return out.normed, kept


def post_norm_backward(
    block: PostNormBlock,
    d_y: Tensor,
    kept: PostNormKept,
    layout: Layout,
    key: DropoutKey | None,
    context: Tensor | None = None,
    context_layout: Layout | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the block's input and of the context from that of its output."""
    keys = [key.at(place) if key else None for place in range(5)]
    x, cross = kept.x, block.cross_attention
    qkv = linear(block.attention.qkv, x) if kept.qkv is None else kept.qkv
    attended = attend(block.attention, qkv, layout, keys[0]) if kept.attended is None else kept.attended
    flat = attended.out.flatten(-2)
    if kept.sums is None:
        first = norm(block.attention_norm, linear(block.attention.out, flat), x, keys[1], layout)
    else:
        first = norm(block.attention_norm, None, kept.sums[0])
    last, d_context = first, None
    query = key_value = cross_attended = cross_flat = None
    if cross is not None:
        assert context is not None
        assert context_layout is not None
        query = linear(cross.query, first.normed) if kept.query is None else kept.query
        key_value = linear(cross.kv, context)
        cross_attended = kept.cross_attended
        if cross_attended is None:
            cross_attended = cross_attend(cross, query, key_value, layout, context_layout, keys[2])
        cross_flat = cross_attended.out.flatten(-2)
        if kept.sums is None:
            last = norm(block.cross_attention_norm, linear(cross.out, cross_flat), first.normed, keys[3], layout)
        else:
            last = norm(block.cross_attention_norm, None, kept.sums[1])
    inside = kept.inside
    if kept.sums is None:
        activated, inside = linear_activated(block.mlp_in, last.normed, "gelu", True)
        out = norm(block.mlp_norm, linear(block.mlp_out, activated), last.normed, keys[4], layout)
    else:
        out = norm(block.mlp_norm, None, kept.sums[-1])
    if inside is None:
        inside = linear(block.mlp_in, last.normed)

    d_fed, d_last = undo_norm(block.mlp_norm, d_y, None, out, keys[4], layout)
    d_last = undo_feed_forward(block, d_fed, last.normed, inside, "gelu", d_last)
    if cross is not None:
        assert query is not None
        assert key_value is not None
        assert cross_attended is not None
        assert cross_flat is not None
        assert context is not None
        assert context_layout is not None
        d_projected, d_first = undo_norm(block.cross_attention_norm, d_last, None, last, keys[3], layout)
        d_flat = undo_linear(cross.out, d_projected, cross_flat)
        d_query, d_key_value = undo_cross_attend(
            cross, d_flat, query, key_value, cross_attended, layout, context_layout, keys[2]
        )
        d_context = undo_linear(cross.kv, d_key_value, context)
        d_last = undo_linear(cross.query, d_query, first.normed, d_first)
    d_projected, d_x = undo_norm(block.attention_norm, d_last, None, first, keys[1], layout)
    d_flat = undo_linear(block.attention.out, d_projected, flat)
    d_qkv = undo_attend(block.attention, d_flat, qkv, attended, layout, keys[0])
    return undo_linear(block.attention.qkv, d_qkv, x, d_x), d_context
