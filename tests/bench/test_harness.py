"""The harness times what it says: each pass alone, in turns, on inputs that nobody else sees."""

from typing import ClassVar

import pytest
import torch
from cacophony.bench.harness import Stopwatch, Task, Timing, measure, tasks
from torch import Tensor

CPU = torch.device("cpu")


class Counted(torch.autograd.Function):
    """x², and how often each direction ran."""

    calls: ClassVar = {"forward": 0, "backward": 0}

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        Counted.calls["forward"] += 1
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        Counted.calls["backward"] += 1
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize(
    ("pass_", "prepared", "timed"),
    [("forward", (0, 0), (1, 0)), ("backward", (1, 0), (0, 1)), ("both", (0, 0), (1, 1))],
)
def test_a_pass_runs_that_and_nothing_else(pass_, prepared: tuple[int, int], timed: tuple[int, int]) -> None:
    x = torch.randn(5, requires_grad=True)
    task = tasks(lambda x: {"y": Counted.apply(x)}, {"x": x})[pass_]
    for _ in range(2):
        Counted.calls.update(forward=0, backward=0)
        state = task.prepare()
        assert tuple(Counted.calls.values()) == prepared
        task.run(state)
        assert tuple(Counted.calls.values()) == tuple(a + b for a, b in zip(prepared, timed, strict=True))
    assert x.grad is None


def test_backward_gives_every_gradient_and_outputs_without_one_are_left_out() -> None:
    def op(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return a * b, a.detach() > 0, a.sum(0)

    inputs = {"a": torch.randn(3, 4, requires_grad=True), "b": torch.randn(4, requires_grad=True)}
    task = tasks(op, inputs)["backward"]
    gradients = task.run(task.prepare())
    assert [gradient.shape for gradient in gradients] == [(3, 4), (4,)]


@pytest.mark.parametrize("inputs", [{"x": torch.arange(3)}, {"x": torch.randn(3)}])
def test_where_there_is_no_gradient_only_forward_is_timed(inputs: dict[str, Tensor]) -> None:
    assert list(tasks(lambda x: x + 1, inputs)) == ["forward"]


def test_an_op_that_writes_into_its_inputs_spoils_nobody_elses() -> None:
    x = torch.ones(3)
    tasks(lambda x: x.add_(1), {"x": x})["forward"].run(None)
    assert torch.equal(x, torch.ones(3))


def test_contestants_take_turns_and_one_that_fails_takes_no_more() -> None:
    turns: list[str] = []

    def fails(_: None) -> None:
        turns.append("b")
        if turns.count("b") == 2:
            raise ValueError("no more")

    contestants = {"a": Task(lambda _: turns.append("a")), "b": Task(fails), "c": Task(lambda _: turns.append("c"))}
    timings = measure(contestants, Stopwatch(CPU), seconds=0.0, warm_up_seconds=0.0, rounds=2)
    without_repeats = [name for before, name in zip(["", *turns], turns, strict=False) if name != before]
    assert without_repeats == ["a", "b", "c", "a", "c"]
    assert isinstance(timings["b"], ValueError)
    for name in "ac":
        timing = timings[name]
        assert isinstance(timing, Timing)
        assert timing.samples == 10
        assert 0 < timing.ms_p20 <= timing.ms_p50 <= timing.ms_p80
        assert timing.extra_bytes is None


def test_percentiles_are_in_milliseconds() -> None:
    timing = Timing.of([0.001 * n for n in range(11)], extra_bytes=7)
    assert (timing.ms_p20, timing.ms_p50, timing.ms_p80) == pytest.approx((2, 5, 8))
    assert timing.samples == 11
    assert timing.extra_bytes == 7
