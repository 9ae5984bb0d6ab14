"""Attention against Python loops; layouts, causality, cached prefixes, dropout and masked rows."""

import math

import pytest
import torch
from cacophony.kernels.attention import attention
from cacophony.kernels.dropout import DropoutKey, attention_dropout
from cacophony.kernels.layout import Layout, Packed, Padded, pack, pad, padded_layout
from torch import Tensor

HEADS, DIM = 2, 3
QUERIES, KEYS = [3, 1, 4], [5, 2, 1]


def tokens(*leading: int) -> Tensor:
    return torch.randn(*leading, HEADS, DIM, dtype=torch.float64)


def full(batch: int, length: int) -> Padded:
    return Padded(torch.ones(batch, length, dtype=torch.bool))


def slow(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, causal: bool = False) -> Tensor:
    """``[B, L, H, d]`` by definition; ``valid`` ``[B, Lk]``, at least one key for every query."""
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for i in range(query.shape[1]):
            last = key.shape[1] - query.shape[1] + i if causal else key.shape[1] - 1
            seen = [j for j in range(key.shape[1]) if valid[b, j] and j <= last]
            for h in range(query.shape[2]):
                scores = [math.exp(float(query[b, i, h] @ key[b, j, h]) / math.sqrt(query.shape[3])) for j in seen]
                for score, j in zip(scores, seen, strict=True):
                    out[b, i, h] += score / sum(scores) * value[b, j, h]
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_equals_loops(causal: bool) -> None:
    layout = Padded(torch.tensor([[True] * 5, [True, True, True, False, False], [True] + [False] * 4]))
    query, key, value = tokens(3, 5), tokens(3, 5), tokens(3, 5)
    out = attention(query, key, value, layout, layout, causal=causal)
    expected = slow(query, key, value, layout.mask, causal)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_cross_attention_equals_loops_wherever_the_keys_lie() -> None:
    valid = torch.tensor([[False, True, False, True], [True] * 4])
    query, key, value = tokens(2, 6), tokens(2, 4), tokens(2, 4)
    out = attention(query, key, value, full(2, 6), Padded(valid))
    torch.testing.assert_close(out, slow(query, key, value, valid), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("new", [1, 2, 5])
def test_causal_aligns_the_last_query_with_the_last_key(new: int) -> None:
    query, key, value = tokens(2, 5), tokens(2, 5), tokens(2, 5)
    whole = attention(query, key, value, full(2, 5), full(2, 5), causal=True)
    step = attention(query[:, -new:], key, value, full(2, new), full(2, 5), causal=True)
    torch.testing.assert_close(step, whole[:, -new:], rtol=1e-12, atol=1e-12)


def ragged(lengths: list[int]) -> tuple[Packed, Tensor]:
    packed = Packed.from_lengths(lengths)
    return packed, tokens(packed.total).requires_grad_()


@pytest.mark.parametrize("kind", ["self", "causal", "cross", "dropout"])
def test_padded_equals_packed_forward_and_backward(kind: str) -> None:
    lengths = [3, 0, 1, 6] if kind != "cross" else QUERIES
    queries, query = ragged(lengths)
    keys, key = ragged(KEYS if kind == "cross" else lengths)
    value = torch.randn_like(key).requires_grad_()
    dropout = DropoutKey(0.5, 1, 2, torch.arange(len(lengths))) if kind == "dropout" else None
    causal = kind in ("causal", "dropout")

    one = attention(query, key, value, queries, keys, causal=causal, dropout=dropout)
    padded_queries, padded_keys = padded_layout(queries), padded_layout(keys)
    arguments = (pad(query, queries), pad(key, keys), pad(value, keys))
    padded = attention(*arguments, padded_queries, padded_keys, causal=causal, dropout=dropout)
    other = pack(padded, padded_queries)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(one)
    for a, b in zip(
        torch.autograd.grad(one, (query, key, value), cotangent),
        torch.autograd.grad(other, (query, key, value), cotangent),
        strict=True,
    ):
        assert bool(a.any())
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_padding_is_neither_seen_nor_trained() -> None:
    layout = Padded(torch.tensor([[True, True, False]]))
    query, key, value = tokens(1, 3), tokens(1, 3), tokens(1, 3)
    slot = torch.tensor([False, False, True])[None, :, None, None]
    loud_key, loud_value = (x.masked_fill(slot, 1e6).requires_grad_() for x in (key, value))
    out = attention(query, loud_key, loud_value, layout, layout)
    torch.testing.assert_close(out, attention(query, key, value, layout, layout), rtol=1e-12, atol=1e-12)
    for gradient in torch.autograd.grad(out.sum(), (loud_key, loud_value)):
        assert not bool(gradient[:, 2].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sequence_without_keys_gets_the_mean_of_its_slots(dtype: torch.dtype) -> None:
    layout = Padded(torch.tensor([[True, True], [False, False]]))
    query, key, value = (tokens(2, 2).to(dtype).requires_grad_() for _ in range(3))
    out = attention(query, key, value, layout, layout)
    expected = value[1].mean(dim=0, keepdim=True).expand(2, -1, -1)
    torch.testing.assert_close(out[1], expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    for gradient in torch.autograd.grad(out.sum(), (query, key, value)):
        assert bool(gradient.isfinite().all())


def test_gradients() -> None:
    layout = Padded(torch.tensor([[True, True, False], [True, True, True]]))
    arguments = [tokens(2, 3).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, layout, layout, causal=True), arguments)


@pytest.mark.parametrize("scale", [1e4, 1e15])
def test_extreme_scores_are_finite(scale: float) -> None:
    query, key, value = ((tokens(1, 4).float() * scale).requires_grad_() for _ in range(3))
    out = attention(query, key, value, full(1, 4), full(1, 4), causal=True)
    assert bool(out.isfinite().all())
    for gradient in torch.autograd.grad(out.sum(), (query, key, value)):
        assert bool(gradient.isfinite().all())


def test_dropout_applies_to_the_weights_after_softmax() -> None:
    """Values that are unit vectors make the output the attention weights themselves."""
    length = 6
    query, key = (torch.randn(2, length, HEADS, length, dtype=torch.float64) for _ in range(2))
    value = torch.eye(length, dtype=torch.float64)[None, :, None].expand(2, length, HEADS, length)
    dropout = DropoutKey(0.4, 0, 0, torch.arange(2))
    layout = full(2, length)
    weights = attention(query, key, value, layout, layout)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, length, HEADS, dtype=torch.float64))
    dropped = attention(query, key, value, layout, layout, dropout=dropout)
    expected = attention_dropout(weights.transpose(1, 2), dropout).transpose(1, 2)
    torch.testing.assert_close(dropped, expected, rtol=1e-12, atol=1e-12)
    assert 0 < int((dropped == 0).sum()) < dropped.numel()


def test_layouts_do_not_mix() -> None:
    packed: Layout = Packed.from_lengths([2])
    with pytest.raises(ValueError, match="both be Padded or both Packed"):
        attention(tokens(1, 2), tokens(2), tokens(2), full(1, 2), packed)
