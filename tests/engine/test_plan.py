"""Plans: what fits where, what the command prints, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cacophony.__main__ import main
from cacophony.engine.config import ContrastiveObjectiveConfig, ContrastiveRunConfig, MaeRunConfig
from cacophony.engine.gpus import GIB, gpu_named
from cacophony.engine.plan import (
    BANDWIDTH_SHARE,
    EFFICIENCY,
    ENOUGH_TOKENS,
    RESERVED_BYTES,
    Machine,
    Plan,
    Planner,
    fit_note,
    nearest_that_fits,
)
from cacophony.engine.presets import paper_stage1, paper_stage2
from cacophony.engine.step_cost import transfers
from cacophony.engine.step_memory import ClipSize
from cacophony.engine.update_config import UpdateConfig
from cacophony.errors import InputError
from cacophony.models.config import AudioTextConfig, TextConfig, TransformerConfig

CLIP = ClipSize(patches=512, text_tokens=20)
# One layer each, for every op of a traced step takes its time; as wide as three of the demo's.
SMALL = ContrastiveRunConfig(
    model=AudioTextConfig(
        audio=TransformerConfig(width=288, layers=1, heads=9, mlp_width=864),
        text=TextConfig(width=96, layers=1, heads=4, mlp_width=192, vocab_size=512, max_positions=96),
        caption_layers=1,
        pool_heads=4,
        projection_width=96,
    ),
    objective=ContrastiveObjectiveConfig(max_patches=512),
    update=UpdateConfig(rho=0.05, warmup_steps=0),
    batch_size=256,
    steps=1000,
)


def machine(memory_gib: float, gpus: int = 1) -> Machine:
    return Machine(gpu=gpu_named(f"{memory_gib} GiB"), gpus=gpus, clip=CLIP)


def test_more_memory_recomputes_less():
    stashes, shares = [], []
    for memory_gib in (2, 3, 4, 6, 12):
        plan = Planner(SMALL, machine(memory_gib)).best()
        assert plan is not None
        assert plan.fits
        assert plan.bytes == sum(plan.parts.values()) <= memory_gib * GIB
        stashes.append(plan.config.objective.stash)
        shares.append(plan.flops.recomputed_share)
    assert stashes == sorted(stashes)
    assert len(set(stashes)) > 2
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.02  # the decoder's keys and values of the patches, which nothing keeps


def test_a_micro_batch_is_no_larger_than_of_use():
    plan = Planner(SMALL, machine(500)).best()
    assert plan is not None
    assert (plan.config.micro_batch_size, plan.config.objective.stash) == (ENOUGH_TOKENS // CLIP.patches, 10)


def test_what_is_asked_for_stays():
    planner = Planner(SMALL, machine(2))
    assert planner.best(stash=10) is None
    least = planner.smallest(stash=10)
    assert not least.fits
    assert least.config.objective.stash == 10
    plan = planner.best(micro_batch_size=4)
    assert plan is not None
    assert plan.config.micro_batch_size == 4


def test_where_a_batch_does_not_fit_a_smaller_one_is_found():
    huge = replace(SMALL, batch_size=SMALL.batch_size * 32)
    assert Planner(huge, machine(2)).best() is None
    nearest = nearest_that_fits(huge, machine(2))
    assert nearest is not None
    assert nearest.fits
    assert SMALL.batch_size <= nearest.config.batch_size < huge.batch_size
    assert nearest_that_fits(SMALL, machine(RESERVED_BYTES / GIB)) is None


def test_the_batch_must_be_divisible():
    with pytest.raises(InputError, match="batch_size 256 is not divisible by 3 GPUs; change --batch or --gpus"):
        Planner(SMALL, machine(80, gpus=3))


def test_the_papers_second_stage_fits_one_80_gb_card():
    """Batch 4096 within 80 GB, predicted."""
    plan = Planner(paper_stage2(), Machine(gpu=gpu_named("h100-80gb"), gpus=1, clip=CLIP)).best()
    assert plan is not None
    assert plan.config.batch_size == 4096
    assert plan.config.objective.stash >= 1


@pytest.fixture(scope="module")
def on_eight_cards() -> Plan:
    plan = Planner(paper_stage2(), Machine(gpu=gpu_named("h100-80gb"), gpus=8, clip=CLIP)).best()
    assert plan is not None
    return plan


def test_eight_cards_need_no_recomputation(on_eight_cards: Plan):
    """DESIGN's figure for the audio tower, 48 GB a card, and the text tower's few on top."""
    plan = on_eight_cards
    assert plan.config.objective.stash == 10
    assert 48e9 < plan.memory.kept < 53e9


def test_flops_are_those_of_the_paper_sized_networks(on_eight_cards: Plan):
    """Forward GFLOP a sample, by hand: 12 blocks of width 768 on 512 patches, and the rest; SAM takes two gradients."""
    plan = on_eight_cards
    a_clip = plan.flops.model / 3 / 512
    assert 105e9 < a_clip < 115e9
    seconds = 2 * (plan.flops.model + plan.flops.recomputed) / (989e12 * plan.machine.efficiency)
    assert plan.compute_seconds == pytest.approx(seconds)
    assert plan.step_seconds == plan.compute_seconds + plan.update_seconds + plan.exposed_seconds
    assert plan.days == plan.step_seconds * 300_000 / 86_400


def test_ranks_send_gradients_weights_and_embeddings():
    assert transfers(paper_stage2(), 4000, 2600, 1) == []
    gradients, weights, embeddings = transfers(paper_stage2(), 4000, 2600, 4)
    assert gradients.bytes == 2 * 4000 * 3 / 4  # SAM's two gradients, each to the rank that updates it
    assert weights.bytes == 2 * 2600 * 3 / 4  # SAM's point and the next weights
    assert embeddings.bytes == 2 * 2 * 4096 * 768 * 4 * 3 / 4  # SAM; both modalities
    assert len(transfers(paper_stage1(), 4000, 2600, 4)) == 2
    gpu = gpu_named("h100-80gb")
    assert gradients.seconds(gpu, 8) <= gradients.seconds(gpu, 16)


def test_a_rank_that_ascends_along_its_own_gradient_keeps_all_and_sends_one_sum_out_and_back():
    config = replace(SMALL, update=replace(SMALL.update, perturbation="local"))
    assert transfers(config, 4000, 2600, 4)[0].bytes == 2 * 4000 * 3 / 4
    eight = Machine(gpu=gpu_named("h100-80gb"), gpus=8, clip=CLIP)
    shared, whole = (Planner(of, eight).plan(of).state for of in (SMALL, config))
    assert whole.master == whole.gradient
    assert shared.master == whole.master // 8
    assert shared.moments == whole.moments // 8
    assert shared.gradient == whole.gradient + whole.gradient // 8
    assert shared.compute == whole.compute + whole.compute // 8


def test_sums_of_gradients_hide_behind_the_last_backward_pass_and_nothing_else_hides():
    """With one micro-batch all but a bucket hides; behind a small one little does, and the rest is waited for."""
    slow = replace(gpu_named("h100-80gb"), link_bandwidth=1e9, bf16_flops=1e13)
    eight = Machine(gpu=slow, gpus=8, clip=CLIP)
    config = replace(SMALL, micro_batch_size=32, update=replace(SMALL.update, bucket_mib=0.5))
    planner = Planner(config, eight)
    plan = planner.plan(config)
    gradients, *others = (transfer.seconds(slow, 8) / BANDWIDTH_SHARE for transfer in plan.transfers)
    assert plan.last_backward_seconds == pytest.approx(2 / 3 * plan.flops.model / (1e13 * EFFICIENCY))
    assert plan.exposed_seconds == pytest.approx(sum(others) + gradients * 2**19 / (4 * plan.parameters))
    cut = planner.plan(replace(config, micro_batch_size=1))
    assert cut.last_backward_seconds == pytest.approx(plan.last_backward_seconds / 32)
    assert cut.exposed_seconds == pytest.approx(sum(others) + gradients - 2 * cut.last_backward_seconds)
    assert plan.exposed_seconds < cut.exposed_seconds < cut.transfer_seconds == plan.transfer_seconds


def test_stage_1_keeps_one_micro_batch():
    plan = Planner(MaeRunConfig(batch_size=64), machine(80)).best()
    assert plan is not None
    assert plan.memory.kept < 1e-3 * plan.memory.working


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "plan.json"
    assert main(["plan", "--preset", "demo", "--gpu", "8 GiB", "--batch", "128", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "stash 10, micro-batches of 64 clips: fits" in printed
    assert "an assumption, not measured" in printed
    found = json.loads(file.read_text())
    assert found["fits"] is True
    assert found["batch_size"] == 128
    assert found["bytes"] == sum(found["parts"].values())


def test_the_command_names_the_nearest_plan(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--preset", "demo", "--gpu", "2 GiB", "--batch", "4096", "--stash", "10"]) == 1
    printed = capsys.readouterr().out
    assert "does not fit" in printed
    assert "nearest plan that fits: batch" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus", "0"], "--gpus is 0; expected 1 to 1024"),
        (["--gpu", "h300"], "--gpu 'h300' is unknown"),
        (["--preset", "papr_stage2"], "did you mean paper_stage2"),
        (["--efficiency", "1.5"], "--efficiency is 1.5; expected a share"),
        (["--seconds", "0.01"], "--seconds is 0.01; expected at least 0.16"),
        (["--text-tokens", "1"], "--text-tokens is 1; expected at least 2"),
        (["--batch", "100", "--gpus", "8"], "batch_size 100 is not divisible by 8 GPUs"),
        (["--micro-batch-size", "0"], "micro_batch_size is 0; expected at least 1"),
        (["--stash", "4"], "--stash"),
        (["--out", "x.md"], "--out goes with --sweep"),
    ],
)
def test_wrong_input_is_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_says_whether_it_fits_and_what_would():
    small, large = gpu_named("2 GiB"), gpu_named("64 GiB")
    config = replace(SMALL, objective=replace(SMALL.objective, stash=10, blocks="by_hand"))
    assert fit_note(config, large, ranks=1).startswith("plan: ")
    note = fit_note(config, small, ranks=1)
    assert "DOES NOT FIT" in note
    best = Planner(config, machine(2)).best()
    assert best is not None
    assert f"--objective.stash {best.config.objective.stash} " in note
    huge = replace(config, batch_size=SMALL.batch_size * 32)
    assert "take a smaller batch_size, or more GPUs" in fit_note(huge, small, ranks=1)
