"""Transformer blocks against PyTorch's own layers with the same weights, and their caches and dropout."""

from typing import TypeVar

import pytest
import torch
from cacophony.kernels.dropout import DropoutKey
from cacophony.kernels.layout import Packed, Padded, pad, padded_layout, unpad
from cacophony.models.block import KeyValueCache, PostNormBlock, PreNormBlock, StackCache
from cacophony.models.config import TextConfig
from cacophony.models.layers import init_weights
from torch import Tensor, nn

CONFIG = TextConfig(width=12, layers=1, heads=3, mlp_width=20)
CONTEXT = 8
OWN, OTHER = Packed.from_lengths([4, 1, 6]), Packed.from_lengths([3, 5, 2])


Block = TypeVar("Block", bound=nn.Module)


def ready(block: Block) -> Block:
    """In float64, every parameter random, so that a forgotten bias or norm shows."""
    init_weights(block, 0)
    block.double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return block


def copy(target: nn.Module, source: nn.Module, names: dict[str, str]) -> None:
    """Load ``source``'s parameters into ``target``, whose prefixes ``names`` maps."""
    state = source.state_dict()
    target.load_state_dict({new: state[old] for new, old in names.items()}, strict=True)


def both(new: str, old: str, separator: str = ".") -> dict[str, str]:
    return {f"{new}{separator}weight": f"{old}.weight", f"{new}{separator}bias": f"{old}.bias"}


def test_pre_norm_block_equals_torchs() -> None:
    block = ready(PreNormBlock(CONFIG))
    oracle = nn.TransformerEncoderLayer(
        12, 3, 20, 0.0, nn.functional.silu, layer_norm_eps=1e-6, batch_first=True, norm_first=True, dtype=torch.float64
    )
    names = both("self_attn.in_proj", "attention.qkv", "_") | both("self_attn.out_proj", "attention.out")
    names |= both("norm1", "attention_norm") | both("norm2", "mlp_norm")
    copy(oracle, block, names | both("linear1", "mlp_in") | both("linear2", "mlp_out"))
    layout = padded_layout(OWN)
    x = torch.randn(3, 6, 12, dtype=torch.float64)
    expected = oracle(x, src_key_padding_mask=~layout.mask)
    torch.testing.assert_close(block(x, layout)[layout.mask], expected[layout.mask], rtol=1e-10, atol=1e-10)


def test_norms_written_in_autocasts_dtype_change_no_number() -> None:
    block = PreNormBlock(CONFIG)
    init_weights(block, 0)
    x = torch.randn(OWN.total, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block(x, OWN)
        residual = x + block.attention(block.attention_norm(x), OWN)
        expected = residual + block.mlp_out(block.mlp_in(block.mlp_norm(residual), "silu"))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_post_norm_block_equals_torchs() -> None:
    block = ready(PostNormBlock(CONFIG, 12))
    oracle = nn.TransformerDecoderLayer(
        12, 3, 20, 0.0, nn.functional.gelu, layer_norm_eps=1e-5, batch_first=True, dtype=torch.float64
    )
    state = block.state_dict()
    renamed = {
        key: state[name]
        for key, name in (
            both("self_attn.in_proj", "attention.qkv", "_")
            | both("self_attn.out_proj", "attention.out")
            | both("multihead_attn.out_proj", "cross_attention.out")
            | both("norm1", "attention_norm")
            | both("norm2", "cross_attention_norm")
            | both("norm3", "mlp_norm")
            | both("linear1", "mlp_in")
            | both("linear2", "mlp_out")
        ).items()
    }
    for kind in ("weight", "bias"):
        parts = (state[f"cross_attention.query.{kind}"], state[f"cross_attention.kv.{kind}"])
        renamed[f"multihead_attn.in_proj_{kind}"] = torch.cat(parts)
    oracle.load_state_dict(renamed, strict=True)

    layout, context_layout = padded_layout(OWN), padded_layout(OTHER)
    x, context = torch.randn(3, 6, 12, dtype=torch.float64), torch.randn(3, 5, 12, dtype=torch.float64)
    out = block(x, layout, context=context, context_layout=context_layout)
    expected = oracle(
        x,
        context,
        tgt_mask=torch.ones(6, 6, dtype=torch.bool).triu(1),
        tgt_key_padding_mask=~layout.mask,
        memory_key_padding_mask=~context_layout.mask,
    )
    torch.testing.assert_close(out[layout.mask], expected[layout.mask], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["pre", "post", "cross", "dropout"])
def test_padded_equals_packed_forward_and_backward(kind: str) -> None:
    block = ready(
        PreNormBlock(CONFIG) if kind == "pre" else PostNormBlock(CONFIG, CONTEXT if kind == "cross" else None)
    )
    x = torch.randn(OWN.total, 12, dtype=torch.float64, requires_grad=True)
    context = torch.randn(OTHER.total, CONTEXT, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, layout: Packed | Padded, context: Tensor, context_layout: Packed | Padded) -> Tensor:
        if kind == "pre":
            return block(x, layout)
        key = DropoutKey(0.4, 1, 2, torch.tensor([5, 6, 7])) if kind == "dropout" else None
        extra = {"context": context, "context_layout": context_layout} if kind == "cross" else {}
        return block(x, layout, dropout_key=key, **extra)

    one = run(x, OWN, context, OTHER)
    other = unpad(run(pad(x, OWN), padded_layout(OWN), pad(context, OTHER), padded_layout(OTHER)), OWN)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    inputs = (x, *([context] if kind == "cross" else []), *block.parameters())
    cotangent = torch.randn_like(one)
    gradients = [torch.autograd.grad(out, inputs, cotangent) for out in (one, other)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_cached_steps_equal_the_whole_sequence_and_read_the_context_once() -> None:
    block = ready(PostNormBlock(CONFIG, CONTEXT))
    x, context = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 4, CONTEXT, dtype=torch.float64)
    everything, audible = (
        Padded(torch.ones(2, 5, dtype=torch.bool)),
        Padded(torch.tensor([[True] * 4, [True] + [False] * 3])),
    )
    whole = block(x, everything, context=context, context_layout=audible)
    own, cross, one = KeyValueCache(), KeyValueCache(), Padded(torch.ones(2, 1, dtype=torch.bool))
    steps = []
    for i in range(5):
        given = context if i == 0 else torch.full_like(context, torch.nan)  # a second look at it would show
        steps.append(block(x[:, i : i + 1], one, context=given, context_layout=audible, cache=own, cross_cache=cross))
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-10, atol=1e-10)


def test_reordering_a_cache_follows_the_rows() -> None:
    caches = StackCache.empty(2)
    assert len(caches.own) == len(caches.cross) == 2
    caches.reorder(torch.tensor([0]))  # nothing is cached yet: nothing to do
    rows = torch.arange(3.0).view(3, 1, 1, 1)
    for cache in (*caches.own, *caches.cross):
        cache.extend(rows, 10 + rows)
    caches.reorder(torch.tensor([2, 2, 0]))
    for cache in (*caches.own, *caches.cross):
        assert cache.key is not None
        assert cache.value is not None
        assert cache.key.flatten().tolist() == [2.0, 2.0, 0.0]
        assert cache.value.flatten().tolist() == [12.0, 12.0, 10.0]


def test_cross_attention_needs_its_context() -> None:
    block, x = ready(PostNormBlock(CONFIG, CONTEXT)), torch.zeros(OWN.total, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match="context"):
        block(x, OWN)


def test_every_place_of_a_block_drops_out_on_its_own() -> None:
    """A rate near 1 silences every sublayer: what is left is the norms of the input."""
    block = ready(PostNormBlock(CONFIG))
    x = torch.randn(OWN.total, 12, dtype=torch.float64)
    key = DropoutKey(1 - 1e-9, 0, 0, torch.arange(3))
    silenced = block.mlp_norm(block.attention_norm(x))
    torch.testing.assert_close(block(x, OWN, dropout_key=key), silenced, rtol=1e-10, atol=1e-10)
    light = DropoutKey(0.2, 0, 0, torch.arange(3))
    assert not torch.equal(block(x, OWN, dropout_key=light), block(x, OWN))
    assert torch.equal(block(x, OWN, dropout_key=light), block(x, OWN, dropout_key=light))
