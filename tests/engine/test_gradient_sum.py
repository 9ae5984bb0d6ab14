"""A bucket of the gradient is summed over ranks as soon as it is whole, never before; what goes wrong is an error."""

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from cacophony.data.noise import noise_batch
from cacophony.engine.arena import Arena, ParameterGroup
from cacophony.engine.build import build_model, build_objective
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig
from cacophony.engine.distributed import World
from cacophony.engine.gradient_sum import GradientSum
from cacophony.kernels.spans import listening
from cacophony.models.audio_text import AudioText
from cacophony.models.gradients import gradients_added, telling_the_last
from cacophony.models.layers import Linear, init_weights
from torch import Tensor, nn


@dataclass(frozen=True)
class TwoAlike(World):
    """Rank 0 of two with the same gradient, whose other half is thought of; notes what is begun and waited for."""

    events: list[Any] = field(default_factory=list, compare=False)
    main_says: str | None = None

    def begin_sum_shares(self, whole: Tensor, own: Tensor) -> Any:
        """Sum at once."""
        own.copy_(2.0 * whole[: len(own)])
        self.exchanges.begun += 1
        self.events.append(whole.storage_offset())
        return own

    def finish(self, begun: Iterable[Any]) -> None:
        """Note how many are waited for."""
        self.events.append(f"finish {len(list(begun))}")

    def from_main(self, name: str, text: str) -> str:
        """What this rank says is what rank 0 says, unless something else is given."""
        return self.main_says or text

    def gather(self, rows: Tensor) -> Tensor:
        """Both have the same rows."""
        return torch.cat((rows, rows))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Both have the same."""
        return tensor.mul_(2)


def world(**fields: Any) -> TwoAlike:
    return TwoAlike(0, 2, torch.device("cpu"), **fields)


def summing_of(model: nn.Module, of: World, linear_dtype: torch.dtype | None = None) -> GradientSum:
    """Every parameter is a bucket."""
    groups = [ParameterGroup([name for name, _ in model.named_parameters()], 0.0)]
    return GradientSum(Arena(model, groups, linear_dtype, of, bucket_bytes=1), of)


class Chain(nn.Module):
    """Three layers one after the other; the first may be used twice, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (Linear(4, 4) for _ in range(3))
        init_weights(self, 0)

    def forward(self, x: Tensor, uses: int = 1) -> Tensor:
        for _ in range(uses):
            x = self.first(x)
        return self.third(self.second(x))


Step = Callable[..., None]


def chain(uses: int = 1, **fields: Any) -> tuple[TwoAlike, GradientSum, Step]:
    """A chain, its sum after the rehearsal, and a step of two micro-batches, of whose last are `uses` and losses."""
    model, there = Chain(), world(**fields)
    summing = summing_of(model, there)

    def step(uses: int = uses, losses: int = 1) -> None:
        with summing.watching():
            for number, x in enumerate(telling_the_last(torch.ones(2, 3, 4))):
                for _ in range(losses if number else 1):
                    model(x, uses if number else 1).sum().backward()
                there.events.append("backward")
        summing.finish()

    step()
    return there, summing, step


def test_buckets_are_begun_in_the_last_backward_pass_in_the_order_they_become_whole() -> None:
    there, summing, step = chain()
    starts = [bucket.whole.start for bucket in summing.arena.layout.buckets]
    assert there.events == ["backward", "backward", *starts, "finish 6"]  # the rehearsal
    there.events.clear()
    step()
    first, *begun, last, finished = there.events
    assert (first, last, finished) == ("backward", "backward", "finish 6")
    assert sorted(begun) == starts
    layers = {place.start: name.split(".")[0] for name, place in summing.arena.places.items()}
    assert [layers[start] for start in begun] == ["third"] * 2 + ["second"] * 2 + ["first"] * 2
    assert not summing.arena.gradient.any()
    assert summing.arena.own_gradient.any()


def test_only_waiting_counts_as_communication() -> None:
    names: list[str] = []

    def heard(name: str) -> Any:
        names.append(name)
        return contextlib.nullcontext()

    class Done:
        def wait(self) -> None: ...

    _, _, step = chain()
    with listening(heard):
        step()
        assert "collective" not in names
        World(0, 2, torch.device("cpu")).finish([Done()])  # type: ignore[list-item]
    assert names == ["collective"]


def test_a_layer_that_is_used_twice_waits_for_both() -> None:
    """By hand each use is an addition; the second is as large as the first, and in the sum."""
    model, there = Chain(), world()
    summing = summing_of(model, there)

    def step() -> None:
        with summing.watching():
            for _ in telling_the_last([0]):
                for layer in (model.third, model.first, model.second, model.first):
                    for parameter in layer.parameters():
                        assert parameter.grad is not None
                        parameter.grad += 1.0
                    gradients_added(layer.parameters())
                    there.events.append(layer)
        summing.finish()

    step()
    there.events.clear()
    step()
    assert [event for event in there.events if isinstance(event, nn.Module)][-1] is model.first
    at = there.events.index(summing.arena.places["first.weight"].start)
    assert there.events[at + 2] is model.first  # the bias follows the weight, and then the second addition ends
    place = summing.arena.places["first.bias"]
    first, last, where = summing.arena.layout.overlap(place, 0)
    assert (summing.arena.own_gradient[where : where + last - first] == 4.0).all()


def test_a_parameter_that_gets_no_gradient_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"^first\.weight got no gradient on rank 0"):
        chain_without_first()


def chain_without_first() -> None:
    summing = summing_of(model := Chain(), world())
    with summing.watching():
        for x in telling_the_last(torch.ones(1, 3, 4)):
            model(x, uses=0).sum().backward()
    summing.finish()


def test_a_parameter_that_gets_none_later_is_named_before_anybody_waits_for_it() -> None:
    there, _, step = chain()
    there.events.clear()
    with pytest.raises(RuntimeError, match=r"^first\.\w+: rank 0 added .* 0 times in the last micro-batch, expected 1"):
        step(uses=0)
    assert not [event for event in there.events if "finish" in str(event)]


def test_a_gradient_that_comes_after_its_sum_is_an_error() -> None:
    _, _, step = chain()
    with pytest.raises(RuntimeError, match=r"^third\.\w+: rank 0 added .* once more .* after it was summed"):
        step(losses=2)


def test_a_rank_that_counts_otherwise_than_rank_0_is_refused() -> None:
    said = dict.fromkeys(("first.weight", "first.bias", "second.weight", "second.bias", "third.weight"), 1)
    main_says = json.dumps({"order": list(range(6)), "additions": said | {"third.bias": 2}})
    with pytest.raises(RuntimeError, match=r"^third\.bias: rank 0 added .* 1 times .* expected 2"):
        chain(main_says=main_says)


@pytest.mark.parametrize(
    ("stash", "precision"), [(0, "fp32"), (1, "bf16"), (10, "fp32"), (None, "fp32"), (None, "bf16")]
)
def test_of_both_stages_nothing_is_left_to_begin_after_the_backward_pass(
    mae_config: MaeRunConfig, contrastive_config: ContrastiveRunConfig, stash: int | None, precision: Any
) -> None:
    """Whatever the stash, by hand or by autograd (None): every exchange of the second gradient begins in it."""
    configs: list[Any] = [mae_config, contrastive_config]
    for config in configs[1:] if stash == 0 else configs:
        blocks = {"blocks": "autograd", "stash": 10} if stash is None else {"blocks": "by_hand", "stash": stash}
        there = world()
        of_case = replace(config, precision=precision, objective=replace(config.objective, **blocks))
        model = build_model(of_case)
        init_weights(model, 0)
        summing = summing_of(model, there, torch.bfloat16 if precision == "bf16" else None)
        objective = build_objective(of_case, there)
        inputs = objective.prepare(noise_batch(4, 300), 0)
        begun = 0
        for _ in range(2):
            there.events.clear()
            with summing.watching():
                objective.backward(model, inputs)
            begun = len(there.events)
            summing.finish()
        assert begun == len(summing.arena.places)
        order = [name for start in there.events[:-1] for name, p in summing.arena.places.items() if p.start == start]
        if isinstance(model, AudioText):
            assert order[0] == "logit_scale.value"
            assert order.index("caption_decoder.head.weight") < order.index("text_encoder.blocks.0.mlp_in.weight")
            assert order[-1].startswith("audio_encoder.")
        else:
            assert order.index("decoder.pixels.weight") < order.index("encoder.blocks.0.mlp_in.weight")
            assert order[-1].startswith("encoder.")
