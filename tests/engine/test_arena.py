"""Parameters in flat buffers: where they lie, and that bfloat16 copies compute what autocast computes."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cacophony.data.noise import noise_batch
from cacophony.engine.arena import BUCKET_BYTES, Arena, ParameterGroup
from cacophony.engine.config import (
    Blocks,
    ContrastiveObjectiveConfig,
    ContrastiveRunConfig,
    MaeObjectiveConfig,
    MaeRunConfig,
    Precision,
)
from cacophony.engine.contrastive_captioning import ContrastiveCaptioning
from cacophony.engine.distributed import World
from cacophony.engine.masked_reconstruction import MaskedReconstruction
from cacophony.engine.objective import Objective, Report
from cacophony.engine.schedule import schedule_table
from cacophony.engine.update import Updater
from cacophony.engine.update_config import UpdateConfig
from cacophony.errors import InputError
from cacophony.kernels.adamw import adamw_
from cacophony.kernels.backend import use_backend
from cacophony.kernels.flat_buffers import PAPER_NARROW_SEGMENTS, PAPER_SEGMENTS, SEGMENT, write_copy
from cacophony.kernels.triton_runtime import HAS_TRITON
from cacophony.models.audio_mae import AudioMAE
from cacophony.models.audio_text import AudioText
from cacophony.models.config import AUDIO_TEXT_SIZES
from cacophony.models.layers import LayerNorm, Linear, Table, init_weights
from torch import Tensor, nn

WORLD = World(0, 1, torch.device("cpu"))
# The perturbation of a weight is as small as in the paper's stage 2: rho over the root of the number of parameters.
PAPER_RHO, PAPER_PARAMETERS = 0.075, 287_000_000


def network() -> nn.Module:
    model = nn.Sequential(Linear(3, 500), LayerNorm(500, 1e-6), Linear(500, 2), Table(7, 3))
    init_weights(model, 0)
    return model


def arena_of(model: nn.Module, linear_dtype: torch.dtype | None = None) -> Arena:
    return Arena(model, [ParameterGroup([name for name, _ in model.named_parameters()], 0.1)], linear_dtype)


def test_parameters_keep_their_values_and_lie_side_by_side():
    model = network()
    expected = copy.deepcopy(model.state_dict())
    arena = arena_of(model)
    for values in (model.state_dict(), arena.weights()):
        assert values.keys() == expected.keys()
        assert all(torch.equal(values[name], expected[name]) for name in expected)
    starts = [place.start for place in arena.places.values()]
    ends = [place.start + place.shape.numel() for place in arena.places.values()]
    assert all(start % SEGMENT == 0 for start in starts)
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert arena.master.count_nonzero() == sum(int(tensor.count_nonzero()) for tensor in expected.values())


def test_the_paper_sized_cases_of_the_ops_are_of_the_papers_size():
    with torch.device("meta"):
        model = AudioText(AUDIO_TEXT_SIZES["paper"])
    arena = arena_of(model, torch.bfloat16)
    assert len(arena.master) == PAPER_SEGMENTS * SEGMENT
    assert len(arena.narrow) == PAPER_NARROW_SEGMENTS * SEGMENT


def test_what_lies_between_parameters_stays_zero():
    model = network()
    updater = Updater(model, UpdateConfig(warmup_steps=0, rho=0.1), 3, linear_dtype=torch.bfloat16)

    def gradient() -> Report:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad += 1.0
        return Report({"loss": torch.zeros(())}, 0, 0, 0)

    for step in range(3):
        updater.update(step, gradient)
    arena = updater.arena
    used = torch.zeros_like(arena.master, dtype=torch.bool)
    for place in arena.places.values():
        place.of(used).fill_(True)
    for buffer in (arena.master, arena.exp_avg, arena.exp_avg_sq):
        assert buffer[used].all()
        assert not buffer[~used].any()


def test_linear_layers_alone_are_copied_in_bfloat16():
    model = network()
    expected = copy.deepcopy(model.state_dict())
    arena = arena_of(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        is_linear = name.split(".")[0] in ("0", "2")
        assert parameter.dtype == (torch.bfloat16 if is_linear else torch.float32)
        assert torch.equal(parameter, expected[name].to(parameter.dtype))
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(arena.weights()[name], expected[name])


def test_shared_parameters_lie_there_once():
    model = network()
    model.add_module("tied", model[0])  # pyright: ignore[reportIndexIssue]
    expected = copy.deepcopy(model.state_dict())
    arena = arena_of(model, torch.bfloat16)
    assert arena.places.keys() == dict(model.named_parameters()).keys()
    weights = arena.weights()
    assert weights.keys() == expected.keys()
    assert weights["tied.weight"].data_ptr() == weights["0.weight"].data_ptr()
    arena.load_weights({name: tensor + 1 for name, tensor in expected.items()}, Path("file"))
    assert all(torch.equal(arena.weights()[name], expected[name] + 1) for name in expected)
    assert torch.equal(model.get_parameter("0.weight"), (expected["0.weight"] + 1).bfloat16())


def test_a_group_has_its_own_decay_and_rate():
    """The first parameter keeps its place by a rate of 0, the second moves by the rate and decays, the others move."""
    model = network()
    (frozen, decayed, *others) = [name for name, _ in model.named_parameters()]
    groups = [ParameterGroup([frozen], 0.5, rate_factor=0.0), ParameterGroup([decayed], 0.5), ParameterGroup(others, 0)]
    arena = Arena(model, groups, None)
    with torch.no_grad():
        arena.load_weights({name: torch.ones_like(tensor) for name, tensor in arena.weights().items()}, Path("file"))
    arena.gradient.fill_(1.0)
    adamw_(
        *(arena.master, arena.exp_avg, arena.exp_avg_sq, arena.gradient, arena.narrow, arena.wide, arena.groups),
        *(arena.table, torch.ones(()), None, arena.counts),
        schedule_table(2, UpdateConfig(learning_rate=0.1, final_learning_rate=0.1, warmup_steps=0)).float(),
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
    )
    for name, tensor in arena.weights().items():
        expected = 1.0 if name == frozen else 0.9 - (0.05 if name == decayed else 0.0)
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected), rtol=1e-6, atol=0)


def test_weights_of_another_network_are_refused_by_name():
    arena = arena_of(network())
    wrong = {name: tensor.clone() for name, tensor in arena.weights().items()} | {"2.bias": torch.zeros(5)}
    with pytest.raises(InputError, match=r"file: tensor 2\.bias has shape \(5,\)"):
        arena.load_weights(wrong, Path("file"))


def test_parameters_of_two_dtypes_are_refused():
    model = network()
    model[0].double()  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ValueError, match="one dtype"):
        arena_of(model)


Built = tuple[AudioMAE | AudioText, Objective]
Stage = Callable[[Precision, Blocks], Built]


def stage_1(config: MaeRunConfig, precision: Precision, blocks: Blocks) -> Built:
    run = MaeRunConfig(model=config.model, precision=precision, micro_batch_size=2)
    return AudioMAE(config.model), MaskedReconstruction(MaeObjectiveConfig(blocks=blocks), run, WORLD)


def stage_2(config: ContrastiveRunConfig, precision: Precision, blocks: Blocks) -> Built:
    run = ContrastiveRunConfig(model=config.model, data=config.data, precision=precision, micro_batch_size=2)
    of_stage = ContrastiveObjectiveConfig(max_patches=40, blocks=blocks, stash=10)
    return AudioText(config.model), ContrastiveCaptioning(of_stage, run, WORLD, dropout=0.1)


@pytest.fixture(params=["mae", "contrastive"])
def stage(request: pytest.FixtureRequest, mae_config: MaeRunConfig, contrastive_config: ContrastiveRunConfig) -> Stage:
    def make(precision: Precision, blocks: Blocks) -> Built:
        if request.param == "mae":
            model, objective = stage_1(mae_config, precision, blocks)
        else:
            model, objective = stage_2(contrastive_config, precision, blocks)
        init_weights(model, 3)
        return model, objective

    return make


@pytest.mark.parametrize("blocks", ["autograd", "by_hand"])
def test_bfloat16_copies_compute_what_autocast_computes(stage: Stage, blocks: Blocks):
    """The same bits: losses, and the gradient of every parameter, over two micro-batches."""
    model, objective = stage("bf16", blocks)
    inputs = objective.prepare(noise_batch(4, 300), 0)
    losses = objective.backward(model, inputs).losses
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert expected.keys() == dict(model.named_parameters()).keys()  # every parameter has a gradient

    model.zero_grad()
    arena = arena_of(model, torch.bfloat16)
    assert any(p.dtype == torch.bfloat16 for p in model.parameters())
    found_losses = objective.backward(model, inputs).losses
    arena.check_gradients()
    assert {name: float(loss) for name, loss in found_losses.items()} == {k: float(v) for k, v in losses.items()}
    for name, gradient in expected.items():
        torch.testing.assert_close(
            arena.places[name].of(arena.gradient), gradient, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_fused_linear_layers_give_their_gradients_unrounded(stage: Stage):
    """The same bits: sums over tokens are float32 and stay so, whether the weights are float32 or copies."""
    found = []
    for linear_dtype in (None, torch.bfloat16):
        model, objective = stage("bf16", "autograd")
        arena = arena_of(model, linear_dtype)
        inputs = objective.prepare(noise_batch(3, 300), 0)
        with use_backend("fused", ops=["linear", "activation"]):
            objective.backward(model, inputs)
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        arena.check_gradients()
    assert any(not torch.equal(g, g.bfloat16().float()) for name, g in found[1].items() if name.endswith("bias"))
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


def second_gradient(stage: Stage, precision: Precision) -> tuple[Tensor, Tensor]:
    """SAM's first and second gradient of a model whose weights move as little as the paper's do."""
    model, objective = stage(precision, "autograd")
    elements = sum(p.numel() for p in model.parameters())
    config = UpdateConfig(warmup_steps=0, rho=PAPER_RHO * (elements / PAPER_PARAMETERS) ** 0.5)
    updater = Updater(model, config, 2, linear_dtype=torch.bfloat16 if precision == "bf16" else None)
    inputs, seen = objective.prepare(noise_batch(4, 300), 0), []

    def gradient() -> Report:
        report = objective.backward(model, inputs)
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        seen.append(torch.cat(gradients))
        return report

    updater.update(0, gradient)
    return seen[0], seen[1]


def test_the_second_gradient_in_bfloat16_points_where_that_in_float32_does(stage: Stage):
    """Cosine at least 0.99, and no further from 1 than twice what bfloat16 costs the first gradient."""
    (first, second), (first_bf16, second_bf16) = second_gradient(stage, "fp32"), second_gradient(stage, "bf16")
    assert not torch.equal(first, second)
    without_sam, with_sam = (
        1.0 - float(torch.cosine_similarity(a, b, dim=0)) for a, b in ((first, first_bf16), (second, second_bf16))
    )
    assert with_sam < 0.01
    assert with_sam < 2.0 * without_sam + 1e-6


RANKS = 5


def shares(linear_dtype: torch.dtype | None, bucket_bytes: int = BUCKET_BYTES) -> list[Arena]:
    """The arenas of ranks that share a network, one of whose parameters lies on two of them."""
    arenas = []
    for rank in range(RANKS):
        model = network()
        groups = [ParameterGroup([name], 0.1) for name, _ in model.named_parameters()]
        arenas.append(Arena(model, groups, linear_dtype, World(rank, RANKS, torch.device("cpu")), bucket_bytes))
    return arenas


@pytest.mark.parametrize("bucket_bytes", [1, 3 * 4 * SEGMENT, BUCKET_BYTES])
@pytest.mark.parametrize("linear_dtype", [None, torch.bfloat16])
def test_the_shares_of_ranks_are_as_large_and_together_the_whole(linear_dtype: torch.dtype | None, bucket_bytes: int):
    arenas, whole = shares(linear_dtype, bucket_bytes), arena_of(network(), linear_dtype)
    assert len({(len(a.own_narrow), len(a.own_wide)) for a in arenas}) == 1
    assert all(arena.layout.buckets == arenas[0].layout.buckets for arena in arenas)
    for arena in arenas:
        assert len(arena.master) == len(arena.own_gradient) == len(arena.own_narrow) + len(arena.own_wide)
        assert len(arena.own_narrow) % SEGMENT == len(arena.own_wide) % SEGMENT == 0
        assert len(arena.groups) == len(arena.master) // SEGMENT
    buckets = arenas[0].layout.buckets
    joined = torch.cat([arena.master[bucket.own] for bucket in buckets for arena in arenas])
    groups = torch.cat([arena.groups.repeat_interleave(SEGMENT)[b.own] for b in buckets for arena in arenas])
    for number, (name, expected) in enumerate(whole.weights().items()):
        place = arenas[0].places[name]
        assert torch.equal(place.of(joined), expected)
        assert (place.of(groups) == number).all()


def test_a_bucket_is_as_large_as_asked_and_ends_with_a_parameter():
    """Of 1 rank, so that nothing fills buckets up; a parameter that is larger has one of its own."""
    model = nn.Sequential(*(Linear(40, 25) for _ in range(5)), Linear(100, 100))
    groups = [ParameterGroup([name for name, _ in model.named_parameters()], 0.1)]
    layout = Arena(model, groups, None, bucket_bytes=4 * 4 * SEGMENT).layout
    assert [(b.whole.stop - b.whole.start) // SEGMENT for b in layout.buckets] == [4, 4, 2, 10, 1]
    assert [place.bucket for place in layout.places.values()] == [0] * 4 + [1] * 4 + [2] * 2 + [3, 4]


def test_moments_are_read_by_any_number_of_ranks():
    generator = torch.Generator().manual_seed(3)
    whole = arena_of(network(), torch.bfloat16)
    for place in whole.places.values():
        for buffer in (whole.exp_avg, whole.exp_avg_sq):
            place.of(buffer).copy_(torch.randn(place.shape, generator=generator))
    whole.counts[1] = 7
    expected = whole.state_tensors()
    arenas, pieces = shares(torch.bfloat16, bucket_bytes=3 * 4 * SEGMENT), {}
    for arena in arenas:
        arena.load_state_tensors(expected, Path("file"))
        pieces |= arena.state_tensors()
        assert arena.counts[1] == 7
    assert any("[" in name for name in pieces)  # a parameter lies on two ranks
    again = arena_of(network(), torch.bfloat16)
    again.load_state_tensors(pieces, Path("file"))
    found = again.state_tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(InputError, match="file: "):
        again.load_state_tensors(arenas[0].state_tensors(), Path("file"))


def test_weights_of_a_file_reach_master_and_copy_of_every_rank():
    expected = {name: tensor + 1 for name, tensor in network().state_dict().items()}
    whole = arena_of(network(), torch.bfloat16)
    whole.load_weights(expected, Path("file"))
    for arena in shares(torch.bfloat16):
        arena.load_weights(expected, Path("file"))
        assert all(torch.equal(p, q) for p, q in zip(arena.model.parameters(), whole.model.parameters(), strict=True))
        write_copy(arena.master, arena.own_narrow, arena.own_wide)
        copy_of_all = arena.layout.cut(torch.cat((arena.narrow.float(), arena.wide)), arena.world.rank)
        assert torch.equal(copy_of_all, torch.cat((arena.own_narrow.float(), arena.own_wide)))
