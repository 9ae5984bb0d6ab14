"""Sequences of like length are padded together, and attention over them does not tell."""

from typing import Any

import pytest
import torch
from cacophony.kernels.attention_reference import attention_bwd_reference, attention_reference
from cacophony.kernels.dropout import DropoutKey
from cacophony.kernels.layout import Packed, pad, padded_layout, unpad
from cacophony.kernels.length_groups import OneGroup, length_groups
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

RAGGED = st.lists(st.integers(0, 300), min_size=1, max_size=8)
QUERIES, KEYS = [70, 3, 0, 130, 65, 64, 4], [5, 200, 66, 130, 65, 1, 0]
"""Several groups each, queries without keys and keys without queries among them."""


@given(RAGGED)
def test_tokens_come_back_and_little_is_padding(lengths: list[int]) -> None:
    packed = Packed.from_lengths(lengths)
    (groups,) = length_groups(packed)
    tokens = torch.arange(1.0, 1 + packed.total)[:, None].requires_grad_()
    padded = groups.pad(tokens)
    assert torch.equal(groups.unpad(padded), tokens)
    (gradient,) = torch.autograd.grad(groups.unpad(padded).sum(), tokens)
    assert torch.equal(gradient, torch.ones_like(tokens))
    masks = [layout.mask for layout in groups.layouts()]
    assert [mask.shape for mask in masks] == [part.shape[:2] for part in padded]
    assert all(torch.equal(part[..., 0] > 0, mask) for part, mask in zip(padded, masks, strict=True))
    assert sum(mask.numel() for mask in masks) <= packed.total + 63 * len(lengths)
    assert len(masks) <= len({-(-length // 64) for length in lengths})


def test_both_sides_are_grouped_alike() -> None:
    queries, keys = length_groups(Packed.from_lengths([3, 5, 4, 70]), Packed.from_lengths([70, 5, 80, 70]))
    assert [mask.mask.sum(1).tolist() for mask in queries.layouts()] == [[3, 4], [5], [70]]
    assert [mask.mask.sum(1).tolist() for mask in keys.layouts()] == [[70, 80], [5], [70]]


@pytest.mark.parametrize("kind", ["self", "causal", "cross", "cross, dropout"])
def test_attention_in_groups_is_attention_padded_all_together(kind: str) -> None:
    queries = Packed.from_lengths(QUERIES)
    keys = Packed.from_lengths(KEYS) if "cross" in kind else queries
    options: dict[str, Any] = {
        "causal": kind == "causal",
        "dropout": DropoutKey(0.4, 1, 2, torch.arange(len(QUERIES))) if "dropout" in kind else None,
    }
    query, d_out = torch.randn(2, queries.total, 2, 3, dtype=torch.float64).unbind()
    key, value = torch.randn(2, keys.total, 2, 3, dtype=torch.float64).unbind()
    inputs = [x.detach().requires_grad_() for x in (query, key, value)]
    out = attention_reference(inputs[0], inputs[1], inputs[2], queries, keys, **options)
    padded = pad(query, queries), pad(key, keys), pad(value, keys)
    layouts = padded_layout(queries), padded_layout(keys)
    torch.testing.assert_close(
        out, unpad(attention_reference(*padded, *layouts, **options), queries), rtol=1e-12, atol=1e-12
    )
    whole = attention_bwd_reference(pad(d_out, queries), *padded, *layouts, **options)
    by_hand = attention_bwd_reference(d_out, query, key, value, queries, keys, **options)
    by_autograd = torch.autograd.grad(out, inputs, d_out)
    for one, two, together, side in zip(by_hand, by_autograd, whole, (queries, keys, keys), strict=True):
        torch.testing.assert_close(one, unpad(together, side), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(two, unpad(together, side), rtol=1e-12, atol=1e-12)


def test_where_the_host_does_not_know_the_lengths_it_does_not_ask() -> None:
    """``meta`` stands for a device: reading from it would raise."""
    layout = Packed(torch.empty(3, dtype=torch.int32, device="meta"), 9, 12)
    assert layout.host_lengths is None
    assert [type(each) for each in length_groups(layout, layout)] == [OneGroup, OneGroup]
    query = torch.empty(12, 2, 4, device="meta")
    assert attention_reference(query, query, query, layout, layout, causal=False, dropout=None).shape == query.shape


def test_no_sequence_at_all() -> None:
    layout, query = Packed.from_lengths([]), torch.empty(0, 2, 4)
    assert attention_reference(query, query, query, layout, layout, causal=False, dropout=None).shape == (0, 2, 4)
    gradients = attention_bwd_reference(query, query, query, query, layout, layout, causal=False, dropout=None)
    assert [gradient.shape for gradient in gradients] == [(0, 2, 4)] * 3


def test_a_compiled_graph_serves_batches_of_other_lengths() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(attention_reference, backend=counter, fullgraph=True)
    for lengths in ([70, 3, 130], [3, 130, 70]):
        layout, query = Packed.from_lengths(lengths), torch.randn(203, 2, 3, dtype=torch.float64)
        found = compiled(query, query, query, layout, layout, causal=True, dropout=None)
        expected = attention_reference(query, query, query, layout, layout, causal=True, dropout=None)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert counter.frame_count == 1
