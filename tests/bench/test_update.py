"""The bench of stage 2's whole update: what is timed, what is refused a time, and what is reported."""

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.__main__ import main
from cacophony.bench import update, update_step
from cacophony.bench.tables import update_goals
from cacophony.bench.update import CUT, UpdateSettings, bench_updates, update_ratios
from cacophony.bench.update_step import UpdateStep, check_gradients, update_batch
from cacophony.bench.update_ways import WAYS, UpdateProvider, mean_clip, planned, run_config
from cacophony.engine.gpus import gpu_named
from cacophony.engine.step_memory import ClipSize
from cacophony.engine.update import Counters
from cacophony.errors import InputError
from cacophony.kernels.attention_sdpa import attention_sdpa
from cacophony.kernels.backend import use_backend, use_rival
from cacophony.models.by_hand import Stash
from torch.utils.flop_counter import FlopCounterMode

CPU = torch.device("cpu")
SMALL = UpdateSettings(
    preset="demo",
    clips=4,
    micro_batch_size=2,
    rounds=1,
    precision="fp32",
    lengths=["realistic"],
    providers=["gradcache"],
)


def test_updates_are_timed_with_machine_and_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "updates.json"
    argv = ["--preset", "demo", "--clips", "4", "--micro-batch-size", "2", "--rounds", "2", "--precision", "fp32"]
    argv += [
        "--provider",
        "fused",
        "gradcache",
        "gradcache packed",
        "--lengths",
        "realistic",
        "--device",
        "cpu",
        "--json",
        str(file),
    ]
    assert main(["bench", "update", *argv]) == 0
    figures = json.loads(file.read_text())
    rows = figures["updates"]
    assert [(row["lengths"], row["provider"]) for row in rows] == [
        ("realistic", provider) for provider in ("fused", "gradcache", "gradcache packed")
    ]
    for row in rows:
        if row["provider"] == "fused":
            assert row["reason"] == "ours is planned for the memory of a GPU, and this is cpu"
            continue
        timing = row["timing"]
        assert (row["clips"], row["micro_batch_size"], row["stash"]) == (4, 2, 0)
        assert timing["rounds"] == 2
        assert timing["clips_per_s"] == pytest.approx(4 / timing["seconds"])
        for name in ("sam_over_plain", "sam_and_adamw_seconds", "sam_and_adamw_over_copy"):
            assert timing[name] > 0.0
        assert timing["mfu"] is None
        assert timing["peak_bytes"] is None
    # Both layouts do the same work: rates differ by the time alone.
    padded, packed = rows[1]["timing"], rows[2]["timing"]
    assert padded["model_tflops_per_s"] * padded["seconds"] == pytest.approx(
        packed["model_tflops_per_s"] * packed["seconds"]
    )
    assert figures["update_ratios"] == {}
    assert figures["machine"]["versions"]["torch"] == torch.__version__
    assert "| realistic | gradcache packed | 4 " in capsys.readouterr().out


@pytest.mark.parametrize(("provider", "stash"), [("fused", 0), ("fused", 3), ("gradcache", 0), ("gradcache packed", 0)])
def test_every_ways_gradients_are_within_the_budget(provider: UpdateProvider, stash: Stash) -> None:
    check_gradients(provider, stash, CPU)


@pytest.mark.parametrize("provider", ["fused", "gradcache"])
def test_what_is_timed_alone_is_the_update_without_its_gradients(provider: UpdateProvider) -> None:
    config = run_config("demo", provider, "bf16", 4, 2)
    step = UpdateStep(model_of(SMALL), config, WAYS[provider].ops, CPU)
    before = {name: tensor.clone() for name, tensor in step.updater.weights().items()}
    task = step.update_alone()
    with FlopCounterMode(display=False) as flops:
        task.run(task.prepare())
    assert flops.get_total_flops() == 0
    after = step.updater.weights()
    assert not any(torch.equal(after[name], matrix) for name, matrix in before.items() if matrix.dim() == 2)
    assert step.updater.counters == Counters(0, 0)


def test_a_way_whose_gradients_are_wrong_is_refused_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that is one per mille too large."""

    def slightly_wrong(*arguments: Any, **options: Any) -> torch.Tensor:
        return 1.001 * attention_sdpa(*arguments, **options)

    @contextlib.contextmanager
    def ops_of(provider: str) -> Iterator[None]:
        with use_backend("reference"), contextlib.ExitStack() as stack:
            if provider == "sdpa":
                stack.enter_context(use_rival("attention", slightly_wrong))
            yield

    monkeypatch.setattr(update_step, "ops_of", ops_of)
    (row,) = bench_updates(SMALL, None)
    assert row.timing is None
    assert "is wrong: error" in (row.reason or "")


class Fake(update_step.UpdateStep):
    """A step for whose micro-batch there may be no memory."""

    def __init__(self, model: Any, config: Any, ops: Any, device: Any, *, most: int) -> None:
        super().__init__(model, config, ops, device)
        self.most = most

    def run(self, batch: Any, *, sam: bool = True) -> Any:
        if self.config.micro_batch_size > self.most:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB.")
        return super().run(batch, sam=sam)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose gradients are right is known."""
    monkeypatch.setattr(update, "check_gradients", lambda *_: None)


@pytest.mark.parametrize(("most", "micro_batch_size"), [(1, 1), (0, None)])
def test_where_memory_is_out_micro_batches_are_halved(
    most: int, micro_batch_size: int | None, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "UpdateStep", functools.partial(Fake, most=most))
    (row,) = bench_updates(SMALL, None)
    assert row.micro_batch_size == micro_batch_size
    assert row.reason == (None if micro_batch_size else "out of memory")


def test_where_time_is_short_fewer_clips_are_taken_and_at_last_none(unchecked: None) -> None:
    asked = replace(SMALL, clips=16, part_seconds=1e-9)
    (row,) = bench_updates(asked, None)
    assert row.reason == CUT
    case = update._Case("realistic", "gradcache", asked, CPU, None, model_of(asked), set())
    row = case.row(update_batch("realistic", 16, run_config("demo", "gradcache", "fp32", 16, 2), CPU), until=0.0)
    assert (row.clips, row.timing is not None and row.timing.rounds) == (8, 1)


def model_of(settings: UpdateSettings) -> torch.nn.Module:
    config = run_config(settings.preset, "fused", settings.precision, settings.clips, settings.clips)
    model = update.build_model(config)
    update.init_weights(model, 0)
    return model


def test_lengths_are_as_stated() -> None:
    config = run_config("paper_stage2", "gradcache", "bf16", 256, 64)
    realistic = update_batch("realistic", 256, config, CPU)
    assert 17.0 < float(realistic.token_lengths.double().mean()) < 20.0
    for lengths, longest in ((realistic.token_lengths, 30), (realistic.wave_lengths, 163_840)):
        assert bool((lengths[::32] == longest).all())
        assert int(lengths.max()) == longest
    full = update_batch("full", 4, config, CPU)
    assert full.token_lengths.unique().tolist() == [77]
    assert mean_clip(config, full) == ClipSize(512, 77)
    assert len(full.wave) == int(full.wave_offsets[-1])
    patches = mean_clip(config, realistic).patches
    assert 256 <= patches <= 320
    assert patches % 8 == 0


def test_ours_is_planned_for_the_memory_there_is() -> None:
    config = run_config("demo", "fused", "bf16", 64, 64)
    batch = update_batch("full", 64, config, CPU)

    def plans(memory: str) -> list[tuple[int, int]]:
        return [(run.objective.stash, run.micro_batch_size) for run in planned(config, batch, gpu_named(memory))]

    assert plans("79 GiB") == [(10, 64)] * 3  # what is tried where one is out of memory all the same
    (tight,) = plans("1.56 GiB")
    assert tight < (10, 64)
    with pytest.raises(InputError, match="no plan for 64 clips fits 1 GiB"):
        plans("1 GiB")


def test_goals_are_held_against_what_was_measured() -> None:
    def row(provider: str, rate: float, **more: Any) -> dict[str, Any]:
        timing = {"clips_per_s": rate, "sam_over_plain": 2.1, "sam_and_adamw_over_copy": 1.1} | more
        return {"lengths": "realistic", "provider": provider, "clips": 4096, "timing": timing}

    rows = [
        row("fused", 1000.0, peak_bytes=79 * 2**30, mfu=0.51),
        row("gradcache", 300.0),
        row("compile", 700.0),
        row("fused", 0.0) | {"lengths": "full", "timing": None},
    ]
    ratios = update_ratios(rows)
    assert ratios == {"realistic": {"fused_over_gradcache": pytest.approx(10 / 3), "fused_over_compile": 10 / 7}}
    assert update_goals(rows, ratios) == [
        "- clips/s of fused over gradcache: 3.33, goal at least 2.5",
        "- clips/s of fused over compile: 1.43, goal at least 1.6: MISSED",
        "- time over that of a step without SAM: 2.1, goal at most 2.05: MISSED",
        "- SAM + AdamW, time over copying: 1.1, goal at most 1.2",
        "- peak GiB at 4096 clips: 79, goal at most 80",
        "- MFU: 0.51, goal at least 0.5",
    ]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--clips", "0"], "--clips is 0; expected at least 1"),
        (["--micro-batch-size", "0"], "--micro-batch-size is 0; expected at least 1"),
        (["--preset", "paper_stage1"], "--preset 'paper_stage1' is unknown; expected one of: paper_stage2"),
    ],
)
def test_wrong_arguments_are_one_line(flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "update", "--device", "cpu", *flags]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
