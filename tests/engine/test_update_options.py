"""What each option of the update computes: clipping, decay, and the cheaper kinds of SAM."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from cacophony.data.batch import AudioTextBatch
from cacophony.data.noise import noise_batch
from cacophony.engine.config import ContrastiveRunConfig
from cacophony.engine.contrastive_captioning import ContrastiveCaptioning, PairInputs
from cacophony.engine.distributed import World
from cacophony.engine.objective import Report
from cacophony.engine.trainer import make_step
from cacophony.engine.update import Updater
from cacophony.engine.update_config import UpdateConfig
from cacophony.models.audio_text import AudioText
from cacophony.models.layers import LayerNorm, Linear, Table, init_weights
from torch import Tensor, nn

RHO, STEPS = 0.2, 6
CONFIG = UpdateConfig(learning_rate=0.03, final_learning_rate=0.03, warmup_steps=0, beta1=0.5, rho=RHO)


class Bowl(nn.Module):
    """A loss whose gradient at w is w + shift, and what was asked of it."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
        self.shift = shift
        self.places: list[Tensor] = []

    def gradient(self) -> Report:
        """Note where the gradient is asked for, and add it."""
        self.places.append(self.w.detach().clone())
        loss = 0.5 * (self.w + self.shift).square().sum()
        loss.backward()
        return Report({"loss": loss.detach()}, 1, 10, 0)


@dataclass(frozen=True)
class OneOfTwo(World):
    """The first of two ranks: the other has gradient ``other`` and norm ``norm``, and no parameter in its share."""

    other: Tensor = field(default_factory=lambda: torch.zeros(2), compare=False)
    norm: float = 0.0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add the other rank's norm."""
        return tensor.add_(self.norm)

    def begin_sum_(self, tensor: Tensor) -> Any:
        """Add the other rank's gradient at once."""
        tensor[: len(self.other)] += self.other

    def begin_sum_shares(self, whole: Tensor, own: Tensor) -> Any:
        """Add the other rank's gradient at once."""
        own.copy_(whole[: len(own)])
        self.begin_sum_(own)

    def finish(self, begun: Iterable[Any]) -> None:
        """It is there."""

    def gather_shares(self, whole: Tensor, own: Tensor) -> None:
        """Leave the other rank's share, in which nothing lies, as it is."""
        whole[: len(own)].copy_(own)


def first_of_two(other: Tensor, norm: float) -> OneOfTwo:
    return OneOfTwo(0, 2, torch.device("cpu"), other=other, norm=norm)


def unit(direction: Tensor) -> Tensor:
    return direction / direction.norm()


@pytest.mark.parametrize("clip_norm", [1.0, 5.0, 7.0])
def test_clipping_is_that_of_pytorch(clip_norm: float):
    bowl = Bowl()
    updater = Updater(bowl, replace(CONFIG, rho=0.0, clip_norm=clip_norm), STEPS)
    expected = torch.tensor([3.0, -4.0], dtype=torch.float64)
    parameter = nn.Parameter(expected.clone())
    parameter.grad = expected.clone()
    nn.utils.clip_grad_norm_([parameter], clip_norm)
    _, outcome = updater.update(0, bowl.gradient)
    # The norm that is reported is that before; PyTorch divides by 1e-6 more than the norm.
    assert float(outcome.gradient_norm) == pytest.approx(5.0)
    torch.testing.assert_close(updater.state_tensors()["exp_avg.w"], 0.5 * parameter.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("no_decay", ["none", "vectors", "vectors_and_tables"])
def test_who_does_not_decay(no_decay: Any):
    model = nn.Sequential(Linear(3, 4), LayerNorm(4, 1e-6), Table(5, 2), Table(4))
    init_weights(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    updater = Updater(model, replace(CONFIG, rho=0.0, weight_decay=0.5, no_decay=no_decay), STEPS)
    updater.update(0, lambda: Report({"loss": torch.zeros(())}, 0, 0, 0))
    exempt = {
        "none": set(),
        "vectors": {"0.bias", "1.weight", "1.bias", "3.weight"},
        "vectors_and_tables": {"0.bias", "1.weight", "1.bias", "2.weight", "3.weight"},
    }[no_decay]
    for name, tensor in updater.weights().items():
        factor = 1.0 if name in exempt else 1.0 - 0.03 * 0.5
        torch.testing.assert_close(tensor, before[name] * factor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("perturbation", ["global", "local"])
def test_sam_follows_the_gradient_of_all_ranks_or_of_its_own(perturbation: Any):
    bowl = Bowl()
    own, other = bowl.w.detach().clone(), torch.tensor([0.0, 10.0], dtype=torch.float64)
    world = first_of_two(other, norm=10.0 if perturbation == "local" else 0.0)
    updater = Updater(bowl, replace(CONFIG, perturbation=perturbation), STEPS, world=world)
    _, outcome = updater.update(0, bowl.gradient)
    followed = own + other if perturbation == "global" else own
    torch.testing.assert_close(bowl.places[1] - own, RHO * unit(followed), rtol=1e-6, atol=1e-9)
    # AdamW's gradient is the sum in any case.
    total = bowl.places[1] + other
    torch.testing.assert_close(updater.state_tensors()["exp_avg.w"], 0.5 * total, rtol=1e-9, atol=0)
    assert float(outcome.gradient_norm) == pytest.approx(math.sqrt(45) if perturbation == "global" else 15.0)


def test_a_share_that_is_not_finite_on_one_rank_skips_the_step_on_all():
    bowl = Bowl()
    world = first_of_two(torch.zeros(2), norm=math.nan)
    updater = Updater(bowl, replace(CONFIG, perturbation="local"), STEPS, world=world)
    _, outcome = updater.update(0, bowl.gradient)
    assert outcome.skipped
    assert torch.equal(updater.weights()["w"], torch.tensor([3.0, -4.0], dtype=torch.float64))


def test_sam_every_third_step_and_adamw_between():
    bowl = Bowl()
    updater = Updater(bowl, replace(CONFIG, sam_every=3), STEPS)
    outcomes = [updater.update(step, bowl.gradient)[1] for step in range(STEPS)]
    assert [len(outcome.reports) for outcome in outcomes] == [2, 1, 1, 2, 1, 1]
    assert [outcome.sam_loss is None for outcome in outcomes] == [False, True, True] * 2
    assert [outcome.valid_tokens for outcome in outcomes] == [2, 1, 1, 2, 1, 1]
    assert [outcome.model_flops for outcome in outcomes] == [20, 10, 10, 20, 10, 10]


def test_a_step_between_is_one_without_sam():
    bowls = Bowl(), Bowl()
    for bowl, config in zip(bowls, (replace(CONFIG, sam_every=3), replace(CONFIG, rho=0.0)), strict=True):
        updater = Updater(bowl, config, STEPS)
        updater.update(1, bowl.gradient)
    assert torch.equal(bowls[0].w, bowls[1].w)


def test_momentum_ascends_along_the_running_mean_with_one_gradient_a_step():
    bowl = Bowl()
    updater = Updater(bowl, replace(CONFIG, ascent="momentum"), STEPS)
    for step in range(3):
        at, mean = updater.weights()["w"].clone(), updater.state_tensors()["exp_avg.w"].clone()
        _, outcome = updater.update(step, bowl.gradient)
        moved = bowl.places[step] - at
        expected = RHO * unit(mean) if mean.any() else torch.zeros_like(moved)  # there is none at the first step
        torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-12)
        assert len(outcome.reports) == 1
        assert outcome.sam_loss == outcome.reports[0].losses["loss"]
        gradient = bowl.places[step]
        torch.testing.assert_close(updater.state_tensors()["exp_avg.w"], 0.5 * (mean + gradient), rtol=1e-9, atol=0)


def test_another_gradient_may_be_followed_than_is_applied():
    bowl = Bowl()
    aside = torch.tensor([0.0, 2.0], dtype=torch.float64)
    updater = Updater(bowl, CONFIG, STEPS)

    def ascent() -> Report:
        bowl.w.backward(aside)
        return Report({"loss": torch.tensor(7.0)}, 3, 30, 0)

    report, outcome = updater.update(0, bowl.gradient, ascent)
    torch.testing.assert_close(bowl.places[0], torch.tensor([3.0, -4.0 + RHO], dtype=torch.float64), rtol=1e-6, atol=0)
    assert float(report.losses["loss"]) == 7.0
    assert (outcome.valid_tokens, outcome.model_flops) == (4, 40)


class Watched(ContrastiveCaptioning):
    """Stage 2's objective that notes what each gradient is of."""

    seen: list[list[PairInputs]]

    def backward(self, model: nn.Module, inputs: list[PairInputs]) -> Report:
        """Note the inputs."""
        self.seen.append(inputs)
        return super().backward(model, inputs)


@pytest.mark.parametrize(("fraction", "clips"), [(1.0, 5), (0.5, 3), (0.01, 1)])
def test_both_gradients_see_their_clips_through_the_same_patches_captions_and_dropout(
    contrastive_config: ContrastiveRunConfig, fraction: float, clips: int
):
    config = replace(
        contrastive_config,
        micro_batch_size=5,
        objective=replace(contrastive_config.objective, max_patches=20),
        update=replace(contrastive_config.update, ascent_fraction=fraction),
    )
    objective = Watched(config.objective, config, World(0, 1, torch.device("cpu")), dropout=0.1)
    objective.seen = []
    model = AudioText(config.model)
    init_weights(model, 0)
    batch: AudioTextBatch = noise_batch(5, 300)
    make_step(Updater(model, config.update, config.steps), objective, batch, 3, config)
    (first,), (second,) = objective.seen
    assert first.audio.layout.batch_size == clips
    tokens, words = int(first.audio_lengths.sum()), int(first.text.lengths.sum())
    assert torch.equal(first.audio_lengths, second.audio_lengths[:clips])
    assert torch.equal(first.audio.values, second.audio.values[:tokens])
    for place in ("time", "freq"):
        assert torch.equal(getattr(first.audio.positions, place), getattr(second.audio.positions, place)[:tokens])
    assert torch.equal(first.text.token_ids, second.text.token_ids[:words])
    keys = [(m.dropout_key.rate, m.dropout_key.seed, m.dropout_key.step) for m in (first, second)]
    assert keys[0] == keys[1]
    assert torch.equal(first.dropout_key.sample_index, second.dropout_key.sample_index[:clips])
