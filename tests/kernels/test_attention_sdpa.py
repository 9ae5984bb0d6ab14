"""PyTorch's own attention as a rival: the reference's numbers on valid tokens, and never through cuDNN."""

from typing import Any

import pytest
import torch
from cacophony.kernels.attention_reference import attention_reference
from cacophony.kernels.attention_sdpa import attention_sdpa
from cacophony.kernels.dropout import DropoutKey
from cacophony.kernels.layout import Layout, Packed, Padded, pad, padded_layout, unpad
from torch import Tensor

QUERIES, KEYS = [5, 1, 9], [3, 12, 4]


def run(function: Any, lengths: tuple[list[int], list[int]], form: str, **options: Any) -> list[Tensor]:
    """Output and gradients of the same valid tokens."""
    torch.manual_seed(0)
    queries, keys = (Packed.from_lengths(each) for each in lengths)
    query, d_out = torch.randn(2, queries.total, 2, 8, dtype=torch.float64).unbind()
    key, value = torch.randn(2, keys.total, 2, 8, dtype=torch.float64).unbind()
    inputs = [x.detach().requires_grad_() for x in (query, key, value)]
    if form == "packed":
        out = function(*inputs, queries, keys, **options)
    else:
        padded = [pad(x, side) for x, side in zip(inputs, (queries, keys, keys), strict=True)]
        out = unpad(function(*padded, padded_layout(queries), padded_layout(keys), **options), queries)
    return [out, *torch.autograd.grad(out, inputs, d_out)]


@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("kind", ["self", "causal", "cross", "all valid"])
def test_valid_tokens_are_the_references(kind: str, form: str) -> None:
    lengths = {"cross": (QUERIES, KEYS), "all valid": ([7, 7], [7, 7])}.get(kind, (QUERIES, QUERIES))
    options = {"causal": kind == "causal", "dropout": None}
    expected = run(attention_reference, lengths, form, **options)
    found = run(attention_sdpa, lengths, form, **options, all_valid=kind == "all valid")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_sequence_without_keys_is_finite_and_the_references() -> None:
    layout: Layout = Padded(torch.tensor([[True, True], [False, False]]))
    query, key, value = torch.randn(3, 2, 2, 2, 8).unbind()
    found = attention_sdpa(query, key, value, layout, layout, causal=False, dropout=None)
    expected = attention_reference(query, key, value, layout, layout, causal=False, dropout=None)
    torch.testing.assert_close(found, expected)


def test_weights_drop_out_at_the_rate() -> None:
    """Keys alike and values of one feature: an output is the share of the weights that stayed, scaled."""
    slots = 64
    layout = Padded(torch.ones(8, slots, dtype=torch.bool))
    query, value = torch.zeros(8, slots, 4, 8), torch.ones(8, slots, 4, 8)
    key = DropoutKey(0.25, 1, 2, torch.arange(8))
    out = attention_sdpa(query, query, value, layout, layout, causal=False, dropout=key)
    assert float(out.std()) > 0.0
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)


def test_it_compiles_whole() -> None:
    torch._dynamo.reset()
    packed = Packed.from_lengths(QUERIES)
    query = torch.randn(packed.total, 2, 8)
    options: dict[str, Any] = {"causal": False, "dropout": None}
    compiled = torch.compile(attention_sdpa, backend="eager", fullgraph=True)
    found = compiled(query, query, query, packed, packed, **options)
    torch.testing.assert_close(found, attention_sdpa(query, query, query, packed, packed, **options))


def test_cudnn_is_out_of_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []

    def record(query: Tensor, *rest: Any, **options: Any) -> Tensor:
        asked.append((torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        return query

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    layout, query = Packed.from_lengths(QUERIES), torch.randn(15, 2, 8)
    attention_sdpa(query, query, query, layout, layout, causal=True, dropout=None)
    assert asked == [(False, True)]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_causal_attention_to_another_number_of_keys_is_refused() -> None:
    layouts = Padded(torch.ones(1, 2, dtype=torch.bool)), Padded(torch.ones(1, 3, dtype=torch.bool))
    query, key = torch.randn(1, 2, 2, 8), torch.randn(1, 3, 2, 8)
    with pytest.raises(ValueError, match="key has 3 slots, expected 2 as query"):
        attention_sdpa(query, key, key, *layouts, causal=True, dropout=None)
