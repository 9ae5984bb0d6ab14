"""Attention libraries played on the CPU by the reference, with the arguments the real ones declare."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from cacophony.kernels.attention_reference import attention_bwd_reference, attention_reference
from cacophony.kernels.layout import Packed
from torch import Tensor


def module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> ModuleType:
    """Make ``name`` importable with what it holds; a package, so that parts of it are looked for, in vain."""
    made = ModuleType(name)
    made.__path__ = []
    vars(made).update(attributes)
    monkeypatch.setitem(sys.modules, name, made)
    return made


class Played:
    """Plays a library: computes with the reference what it is called with, and holds it to the library's arguments."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, causal: bool) -> Any:
        layouts = self.layouts(queries, keys)
        out = attention_reference(q, k, v, *layouts, causal=causal, dropout=None)
        return out, torch.full((q.shape[1], q.shape[0]), 7.0)

    def backward(
        self, d: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, queries: Tensor, keys: Tensor, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert torch.equal(lse, torch.full((q.shape[1], q.shape[0]), 7.0)), "lse is not what forward returned"
        return attention_bwd_reference(d, q, k, v, *self.layouts(queries, keys), causal=causal, dropout=None)

    def layouts(self, queries: Tensor, keys: Tensor) -> tuple[Packed, Packed]:
        one, other = (Packed(x, int(x.diff().max()), int(x[-1])) for x in (queries, keys))
        return one, other


PLAYED = Played()


# The parameters of these two are flash_attn 2.8.3's.
def flash2_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert (dropout_p, max_seqlen_q, max_seqlen_k) == (0.0, 9, 40 if len(k) != len(q) else 9)
    assert softmax_scale == pytest.approx(q.shape[-1] ** -0.5)
    return *PLAYED.forward(q, k, v, cu_seqlens_q, cu_seqlens_k, causal), torch.empty(0), torch.empty(2)


def flash2_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
) -> Tensor:
    assert deterministic
    assert (window_size_left, window_size_right, softcap, alibi_slopes, dropout_p) == (-1, -1, 0.0, None, 0.0)
    found = PLAYED.backward(dout, q, k, v, softmax_lse, cu_seqlens_q, cu_seqlens_k, causal)
    for gradient, computed in zip((dq, dk, dv), found, strict=True):
        gradient.copy_(computed)
    return torch.empty(0)


def play_flash2(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, "flash_attn", __version__="2.8.3")
    functions = {"_flash_attn_varlen_forward": flash2_forward, "_flash_attn_varlen_backward": flash2_backward}
    module(monkeypatch, "flash_attn.flash_attn_interface", **functions)


# What is passed of the schemas that FlashAttention 3 registers (hopper/flash_api_stable.cpp), in their order.
FLASH3_FWD = (
    "fwd(Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, int? max_seqlen_q=None, "
    "int? max_seqlen_k=None, float? softmax_scale=None, bool is_causal=False, int num_splits=0) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
FLASH3_BWD = (
    "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(dq!)? dq=None, "
    "Tensor(dk!)? dk=None, Tensor(dv!)? dv=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, "
    "int? max_seqlen_q=None, int? max_seqlen_k=None, float? softmax_scale=None, bool is_causal=False, "
    "bool deterministic=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def play_flash3(monkeypatch: pytest.MonkeyPatch) -> None:
    def fwd(
        q: Tensor, k: Tensor, v: Tensor, cq: Any, ck: Any, mq: Any, mk: Any, s: Any, causal: bool, splits: int
    ) -> Any:
        assert splits == 1
        return *PLAYED.forward(q, k, v, cq, ck, causal), torch.empty(0), torch.empty(0)

    def bwd(
        d: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        lse: Tensor,
        dq: Tensor,
        dk: Tensor,
        dv: Tensor,
        *rest: Any,
    ) -> Any:
        cq, ck, _, _, _, causal, deterministic = rest
        assert deterministic
        for gradient, computed in zip((dq, dk, dv), PLAYED.backward(d, q, k, v, lse, cq, ck, causal), strict=True):
            gradient.copy_(computed)
        return tuple(torch.empty(0) for _ in range(5))

    library = torch.library.Library("flash_attn_3", "DEF")
    for schema, function in ((FLASH3_FWD, fwd), (FLASH3_BWD, bwd)):
        library.define(schema)
        library.impl(schema.partition("(")[0], function, "CPU")
    module(monkeypatch, "flash_attn_3")
    module(monkeypatch, "flash_attn_3._C", library=library)


def play_xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 0.0.35: tensors of a batch of one, the mask an object."""
    forward_op, backward_op = SimpleNamespace(is_available=lambda: True), SimpleNamespace(is_available=lambda: True)

    class BlockDiagonalMask:
        def __init__(self, q_seqinfo: Any, k_seqinfo: Any) -> None:
            self.offsets = q_seqinfo.seqstart, k_seqinfo.seqstart
            assert q_seqinfo.max_seqlen == 9

    class BlockDiagonalCausalMask(BlockDiagonalMask):
        pass

    def forward(
        query: Tensor, key: Tensor, value: Tensor, attn_bias: Any, p: float = 0.0, scale: Any = None, *, op: Any
    ):
        assert op is forward_op
        causal = isinstance(attn_bias, BlockDiagonalCausalMask)
        queries, keys = attn_bias.offsets
        out, lse = PLAYED.forward(query[0], key[0], value[0], queries, keys, causal)
        return out[None], lse[None]

    def backward(
        grad: Tensor,
        output: Tensor,
        lse: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Any,
        p: float = 0.0,
        scale: Any = None,
        *,
        op: Any,
    ):
        assert op is backward_op
        assert torch.are_deterministic_algorithms_enabled()
        causal = isinstance(attn_bias, BlockDiagonalCausalMask)
        queries, keys = attn_bias.offsets
        found = PLAYED.backward(grad[0], query[0], key[0], value[0], lse[0], queries, keys, causal)
        return tuple(gradient[None] for gradient in found)

    masks = SimpleNamespace(
        _SeqLenInfo=SimpleNamespace,
        BlockDiagonalMask=BlockDiagonalMask,
        BlockDiagonalCausalMask=BlockDiagonalCausalMask,
    )
    module(monkeypatch, "xformers")
    module(monkeypatch, "xformers.ops")
    module(
        monkeypatch,
        "xformers.ops.fmha",
        attn_bias=masks,
        flash=SimpleNamespace(FwOp=forward_op, BwOp=backward_op),
        memory_efficient_attention_forward_requires_grad=forward,
        memory_efficient_attention_backward=backward,
    )


def play_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real schemas, for they are in every build of PyTorch; only CUDA has kernels."""
    monkeypatch.setattr("torch.backends.cuda.is_flash_attention_available", lambda: True)
    library = torch.library.Library("aten", "IMPL")
    module(monkeypatch, "keeps_the_library_alive", library=library)

    def forward(q: Tensor, k: Tensor, v: Tensor, cq: Tensor, ck: Tensor, mq: int, mk: int, *rest: Any, **scale: Any):
        dropout, causal, debug = rest
        assert (dropout, debug) == (0.0, False)
        out, lse = PLAYED.forward(q, k, v, cq, ck, causal)
        return out, lse, torch.empty(2), torch.empty(0), torch.empty(0)

    def backward(d: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *rest: Any, **scale: Any):
        assert torch.are_deterministic_algorithms_enabled()
        cq, ck, _, _, dropout, causal, *_ = rest
        assert dropout == 0.0
        return PLAYED.backward(d, q, k, v, lse, cq, ck, causal)

    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")


PLAYS = {"flash3": play_flash3, "flash2": play_flash2, "torch": play_torch, "xformers": play_xformers}
