"""Transformer blocks by hand: a forward that keeps what the stash says, and a backward that makes the rest again.

Numbers kept per token of a pre-norm block of width d and feed-forward 4 d:

===== ==== ==================================== =====================================================
level kept what                                 computed again in backward
===== ==== ==================================== =====================================================
1     1 d  the block's input                    all but the feed-forward's second half
2     2 d  + the sum after attention            queries, keys, values, attention, feed-forward's first half
3     3 d  + what attention returned            queries, keys, values, feed-forward's first half
6     6 d  + queries, keys and values           the feed-forward's first half
10    10 d + the feed-forward's inside          normalisations and activations only
===== ==== ==================================== =====================================================

A post-norm block keeps, at level 2, the sum before each of its norms. Level 0 keeps nothing: whoever calls runs the
stack again, at a level above, before its backward. Dropout masks are functions of their keys and are replayed. No
autograd graph exists inside; gradients of parameters are added to their ``grad``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..kernels.dropout import DropoutKey
from ..kernels.layout import Layout
from ..kernels.precision import autocast
from .block import PostNormBlock, PreNormBlock
from .by_hand import Stash
from .gradients import gradients_added
from .post_norm_by_hand import post_norm_backward, post_norm_forward
from .pre_norm_by_hand import pre_norm_backward, pre_norm_forward


def run_stack(
    blocks: Sequence[nn.Module],
    x: Tensor,
    layout: Layout,
    stash: Stash | None,
    *,
    dropout_key: DropoutKey | None = None,
    context: Tensor | None = None,
    context_layout: Layout | None = None,
) -> Tensor:
    """Run ``blocks`` (all pre-norm, or all post-norm) on tokens ``x`` ``[..., D]``; differentiable.

    ``stash`` is what the forward keeps for the backward, at least 1; None leaves the blocks to autograd, which keeps
    everything. ``dropout_key.at(n)`` is block n's key; blocks with cross-attention read ``context``. By hand the
    computation is in ``x``'s dtype whatever autocast says.
    """
    keys = [dropout_key.at(number) if dropout_key else None for number in range(len(blocks))]
    if stash is None:
        for block, key in zip(blocks, keys, strict=True):
            if isinstance(block, PreNormBlock):
                x = block(x, layout)
            else:
                x = block(x, layout, dropout_key=key, context=context, context_layout=context_layout)
        return x
    if stash < 1:
        raise ValueError(f"run_stack: stash is {stash}, expected 1, 2, 3, 6 or 10: level 0 is the caller's")
    stack = _Stack(blocks, layout, stash, keys, context_layout, keep=torch.is_grad_enabled())
    if context is not None:
        context = context.to(x.dtype)
    anchor = next(blocks[0].parameters())  # parameters ask for backward even where x does not
    return _StackFunction.apply(stack, x, context, anchor)


@dataclass(frozen=True)
class _Stack:
    blocks: Sequence[nn.Module]
    layout: Layout
    stash: Stash
    keys: Sequence[DropoutKey | None]
    context_layout: Layout | None
    keep: bool

    def forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, list[Any]]:
        kept: list[Any] = []
        update: Tensor | None = None
        for block, key in zip(self.blocks, self.keys, strict=True):
            if isinstance(block, PreNormBlock):
                x, update, of_block = pre_norm_forward(block, x, update, self.layout, self.stash)
            else:
                assert isinstance(block, PostNormBlock)
                x, of_block = post_norm_forward(block, x, self.layout, self.stash, key, context, self.context_layout)
            if self.keep:
                kept.append(of_block)
        return (x if update is None else x + update), kept

    def backward(self, d_x: Tensor, kept: list[Any], context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        d_context: Tensor | None = None
        for block, key in zip(reversed(self.blocks), reversed(self.keys), strict=True):
            of_block = kept.pop()
            if isinstance(block, PreNormBlock):
                d_x = pre_norm_backward(block, d_x, of_block, self.layout)
            else:
                assert isinstance(block, PostNormBlock)
                d_x, more = post_norm_backward(block, d_x, of_block, self.layout, key, context, self.context_layout)
                d_context = more if d_context is None else d_context + more if more is not None else d_context
            gradients_added(block.parameters())
        return d_x, d_context


class _StackFunction(torch.autograd.Function):
    """Joins a stack to the graph around it."""

    @staticmethod
    def forward(ctx: Any, stack: _Stack, x: Tensor, context: Tensor | None, anchor: Tensor) -> Tensor:
        """Run forward and hold on to what was kept."""
        ctx.stack, ctx.context = stack, context
        with autocast(x.device, None):
            y, ctx.kept = stack.forward(x, context)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> Any:  # type: ignore[override]
        """Run backward; what was kept is let go block by block."""
        d_x, d_context = ctx.stack.backward(d_y, ctx.kept, ctx.context)
        return None, d_x, d_context, None


def recomputed_flops(
    block: PreNormBlock | PostNormBlock, lengths: Tensor, stash: Stash, context_lengths: Tensor | None = None
) -> int:
    """FLOPs that a backward at ``stash`` spends on computing ``block``'s forward again (the table above).

    ``lengths`` and ``context_lengths`` int64 ``[B]``, tokens of each sequence and of its context. Level 0 is the whole
    forward. What attention kernels compute again inside their backward is theirs and not counted.
    """
    tokens, attention = int(lengths.sum()), block.attention
    whole = block.flops(lengths) if isinstance(block, PreNormBlock) else block.flops(lengths, context_lengths)
    cross = block.cross_attention if isinstance(block, PostNormBlock) else None
    parts = {  # the first level that keeps it, and what it costs without
        "mlp_out": (1 if isinstance(block, PreNormBlock) else 2, block.mlp_out.flops(tokens)),
        "out": (2, attention.out.flops(tokens)),
        "attended": (3, attention.flops(lengths) - attention.out.flops(tokens) - attention.qkv.flops(tokens)),
        "qkv": (6, attention.qkv.flops(tokens)),
        "mlp_in": (10, block.mlp_in.flops(tokens)),
    }
    if cross is not None and context_lengths is not None:
        context = int(context_lengths.sum())
        ends = cross.query.flops(tokens) + cross.kv.flops(context) + cross.out.flops(tokens)
        parts |= {
            "cross out": (2, cross.out.flops(tokens)),
            "cross attended": (3, cross.flops(lengths, context_lengths) - ends),
            "query": (6, cross.query.flops(tokens)),
            "keys and values": (11, cross.kv.flops(context)),  # no level keeps them
        }
    if stash == 0:
        return whole
    return sum(flops for kept_from, flops in parts.values() if stash < kept_from)
