"""Spans reach who listens, in order, and leave no trace of themselves; ops are told only to their own listener."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from cacophony.kernels.block_ops import linear_forward
from cacophony.kernels.layer_norm import layer_norm
from cacophony.kernels.spans import OpCall, listening, listening_to_ops, op_listener, span


class Listener:
    """Notes what begins and ends."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.calls: list[OpCall] = []

    @contextlib.contextmanager
    def opens(self, name: str) -> Iterator[None]:
        self.heard.append(f"<{name}")
        try:
            yield
        finally:
            self.heard.append(f"{name}>")

    def opens_op(self, call: OpCall) -> contextlib.AbstractContextManager[None]:
        self.calls.append(call)
        return self.opens(call.name)


def test_every_listener_is_told_and_none_afterwards() -> None:
    first, second = Listener(), Listener()
    with listening(first.opens):
        with span("a"), listening(second.opens), span("b"):
            pass
        with pytest.raises(RuntimeError, match="broken"), span("c"):
            raise RuntimeError("broken")
    with span("d"):
        pass
    assert first.heard == ["<a", "<b", "b>", "a>", "<c", "c>"]
    assert second.heard == ["<b", "b>"]


def test_without_a_listener_a_span_is_one_and_the_same_object() -> None:
    assert span("a") is span("b")
    assert op_listener() is None


def test_calls_of_ops_are_told_with_their_arguments_and_give_the_same() -> None:
    x, weight, bias = torch.randn(3, 8), torch.randn(8), torch.randn(8)
    listener = Listener()
    expected = layer_norm(x, weight, bias, 1e-6)
    with listening_to_ops(listener.opens_op), listening(listener.opens):
        found = layer_norm(x, weight, bias, 1e-6)
        linear_forward(x, torch.randn(4, 8), torch.randn(4))
    assert torch.equal(found, expected)
    assert listener.heard == ["<layer_norm", "layer_norm>", "<linear", "linear>"]
    call, step = listener.calls
    assert call.args[0] is x
    assert (step.args, step.with_backward) == ((), False)
    layer_norm(x, weight, bias, 1e-6)
    assert len(listener.calls) == 2
