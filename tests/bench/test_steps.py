"""The step bench: what it times, and what it reports."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.__main__ import main
from cacophony.bench import steps
from cacophony.bench import training_step as step_module
from cacophony.bench.steps import STAGES, StepSettings, bench_steps, step_ratios
from cacophony.bench.training_step import StepWork, Variant, training_step

LAYOUTS = ("packed", "padded")


def test_every_stage_and_layout_is_timed_with_machine_and_versions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "steps.json"
    assert main(["bench", "steps", "--clips", "2", "--rounds", "1", "--device", "cpu", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert [(t["stage"], t["provider"], t["layout"]) for t in figures["steps"]] == [
        (stage, "reference", layout) for stage in STAGES for layout in LAYOUTS
    ]
    for stage in STAGES:
        packed, padded = (row["timing"] for row in figures["steps"] if row["stage"] == stage)
        ratio = padded["seconds"] / packed["seconds"]
        assert figures["step_ratios"][stage] == {"padded_over_packed": pytest.approx(ratio)}
        # The layouts do the same work: rates differ by the time alone.
        assert packed["valid_tokens_per_s"] * packed["seconds"] == pytest.approx(
            padded["valid_tokens_per_s"] * padded["seconds"]
        )
        assert packed["mfu"] is None
        assert packed["peak_bytes"] is None
    assert figures["machine"]["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    for stage in STAGES:
        assert f"{stage}: padded takes {figures['step_ratios'][stage]['padded_over_packed']:.2f} times" in printed


def test_a_variant_that_cannot_run_has_a_reason_and_the_rest_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "fused_ops", lambda _: [])
    variants = [Variant("fused", "packed"), Variant("reference", "packed")]
    fused, reference = bench_steps(StepSettings(stages=["mae"], clips=1, rounds=1, variants=variants))
    assert fused.reason == "no op has a fused implementation on cpu"
    assert fused.timing is None
    assert reference.timing is not None


def test_the_sdpa_variant_is_plain_pytorch_with_its_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    theirs = torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(options["is_causal"])
        return theirs(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    variants = [Variant("reference", "padded"), Variant("sdpa", "padded")]
    work = {}
    for variant in variants:
        step = training_step("contrastive", "demo", 2, "fp32", variant, torch.device("cpu"))
        work[variant.provider] = step()
        assert bool(calls) == (variant.provider == "sdpa")
    assert set(calls) == {False, True}
    assert work["sdpa"] == work["reference"]


def test_a_stage_whose_time_is_over_makes_one_round() -> None:
    variants = [Variant("reference", "packed")]
    settings = StepSettings(stages=["mae"], clips=1, rounds=50, variants=variants, stage_seconds=0.0)
    (row,) = bench_steps(settings)
    assert row.timing is not None
    assert row.timing.rounds == 1


def test_variants_take_turns_and_one_that_breaks_does_not_stop_them(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def fake_step(*arguments: Any) -> Any:
        variant = arguments[4]

        def step() -> StepWork:
            turns.append(variant.layout if variant.provider == "reference" else variant.provider)
            if variant.provider == "compile":
                raise RuntimeError("no compiler\nand more")
            if variant.provider == "fused" and turns.count("fused") == 4:
                raise torch.OutOfMemoryError("Tried to allocate 2 GiB.")
            return StepWork(100, 10**12)

        return step

    monkeypatch.setattr(steps, "training_step", fake_step)
    variants = [Variant("compile", "padded"), Variant("fused", "packed"), *(Variant("reference", x) for x in LAYOUTS)]
    rows = list(bench_steps(StepSettings(stages=["mae"], rounds=3, variants=variants)))
    assert [(row.provider, row.layout, row.reason) for row in rows] == [
        ("fused", "packed", "out of memory"),
        ("reference", "packed", None),
        ("reference", "padded", None),
        ("compile", "padded", "RuntimeError: no compiler"),
    ]
    warm = [name for name in ("fused", "packed", "padded") for _ in range(2)]
    assert turns == [*warm, "fused", "packed", "padded", "fused", "packed", "padded", "packed", "padded", "compile"]
    assert all(row.timing.rounds == 3 for row in rows if row.timing)


def test_ratios_compare_layouts_of_plain_pytorch_and_each_providers_best_with_fused() -> None:
    def row(provider: str, layout: str, seconds: float | None) -> dict[str, Any]:
        return {
            "stage": "mae",
            "provider": provider,
            "layout": layout,
            "timing": None if seconds is None else {"seconds": seconds},
        }

    rows = [row("reference", "packed", 4.0), row("reference", "padded", 6.0), row("compile", "padded", 3.0)]
    assert step_ratios(rows) == {"mae": {"padded_over_packed": 1.5}}
    rows.append(row("fused", "padded", None))
    assert step_ratios(rows) == {"mae": {"padded_over_packed": 1.5}}
    rows.append(row("fused", "packed", 2.0))
    assert step_ratios(rows)["mae"] == {
        "padded_over_packed": 1.5,
        "reference_over_fused": 2.0,
        "compile_over_fused": 1.5,
    }


@pytest.mark.parametrize(
    ("flags", "expected"), [(["--rounds", "0"], "--rounds is 0"), (["--clips", "0"], "--clips is 0")]
)
def test_a_wrong_number_is_one_line(flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "steps", *flags]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
