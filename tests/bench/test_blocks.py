"""The block bench: every way computes the same blocks, or has no time; what is reported."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.__main__ import main
from cacophony.bench import block_stack, parts
from cacophony.bench.block_stack import SEQUENCES, TIMED, WAYS, Ready, Stack
from cacophony.bench.blocks import CUT, BlockSettings, bench_blocks
from cacophony.bench.harness import PASSES
from cacophony.bench.parts import Plan, run_blocks
from cacophony.bench.roofline import Roofs
from cacophony.bench.tables import block_table
from cacophony.models.config import AUDIO_TEXT_SIZES

CPU = torch.device("cpu")
DEMO = AUDIO_TEXT_SIZES["demo"]
ROOFS = Roofs(10.0, {"bfloat16": 0.5, "float32": 0.25})
SMALL = BlockSettings(
    size="demo",
    tokens=40,
    layers=[1],
    sequences=["captions"],
    providers=["stash10", "stash3", "padded", "sdpa"],
    precision="fp32",
    rounds=1,
    seconds=0.001,
)


@pytest.mark.parametrize("sequences", SEQUENCES)
def test_a_stack_has_about_the_tokens_asked_for(sequences: str) -> None:
    stack = Stack.of(sequences, 2, 6000, DEMO, CPU)
    assert 0.9 < sum(stack.lengths) / 6000 < 1.1
    assert max(stack.lengths) <= stack.slots
    assert (min(stack.lengths) < stack.slots) == (sequences == "captions")
    few = stack.few(1600)
    assert few.lengths == stack.lengths[: len(few.lengths)]
    assert 700 < sum(few.lengths) <= 1600
    assert few.flops() < stack.flops()


@pytest.mark.parametrize("sequences", ["S = 150", "captions"])
@pytest.mark.parametrize("name", [name for name in TIMED if name not in ("xformers", "compile")])
def test_every_way_is_the_same_stack(name: str, sequences: str) -> None:
    """In float64, where what is left of a difference is rounding."""
    stack = Stack.of(sequences, 2, 80, DEMO, CPU)
    exact = Ready(stack, WAYS["reference"], "fp32", CPU, exact=True).results()
    found = Ready(stack, WAYS[name], "fp32", CPU, exact=True).results()  # type: ignore[index]
    assert found.keys() == exact.keys()
    assert len(exact) == 2 + 2 * 12
    for tensor, truth in exact.items():
        torch.testing.assert_close(found[tensor], truth, rtol=1e-9, atol=1e-9, msg=tensor)


def test_every_pass_of_every_way_is_timed() -> None:
    rows = list(bench_blocks(SMALL, ROOFS))
    assert [(row.sequences, row.layers, row.provider, row.reason) for row in rows] == [
        ("captions", 1, name, None) for name in SMALL.providers
    ]
    flops = Stack.of("captions", 1, 40, DEMO, CPU).flops()
    for row in rows:
        assert set(row.passes) == set(PASSES)
        assert row.valid_tokens == rows[0].valid_tokens
        assert row.peak_bytes is None
        for name, products in zip(PASSES, (1, 2, 3), strict=True):
            figures = row.passes[name]
            assert figures.tflop_per_s * figures.timing.ms_p50 == pytest.approx(products * flops / 1e9)
            assert figures.roof_share == pytest.approx(figures.tflop_per_s / 0.25)


def test_a_way_that_is_wrong_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = block_stack.attention_sdpa
    monkeypatch.setattr(block_stack, "attention_sdpa", lambda *args, **options: 1.001 * theirs(*args, **options))
    stash10, sdpa = bench_blocks(replace(SMALL, providers=["stash10", "sdpa"]))
    assert stash10.reason is None
    assert sdpa.reason is not None
    assert sdpa.reason.startswith("wrong: error of output is ")
    assert not sdpa.passes


def test_an_attention_that_is_not_there_is_a_reason_not_another_attention() -> None:
    (row,) = bench_blocks(replace(SMALL, providers=["xformers"]))
    assert "attention" in str(row.reason)
    assert not row.passes


def test_the_compiled_way_comes_after_the_others_and_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as with the default compiler, which takes long, then run without it."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    rows = list(bench_blocks(replace(SMALL, providers=["compile", "stash10"])))
    assert [(row.provider, row.reason) for row in rows] == [("stash10", None), ("compile", None)]


def test_bf16_is_held_to_its_own_budget() -> None:
    rows = list(bench_blocks(replace(SMALL, precision="bf16", sequences=["S = 150"])))
    assert [row.reason for row in rows] == [None] * len(rows)


def test_cases_that_would_be_late_are_cut() -> None:
    rows = list(bench_blocks(replace(SMALL, part_seconds=0.0)))
    assert [row.reason for row in rows] == [CUT] * len(SMALL.providers)


def test_the_command_writes_figures_and_a_table_with_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "blocks.json"
    argv = ["--size", "demo", "--tokens", "40", "--layers", "1", "--sequences", "captions", "--precision", "fp32"]
    argv += ["--provider", "stash10", "sdpa", "xformers", "--rounds", "1", "--seconds", "0.001", "--device", "cpu"]
    assert main(["bench", "blocks", *argv, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert block_table(figures["blocks"]) in capsys.readouterr().out
    stash10, sdpa, xformers = block_table(figures["blocks"]).splitlines()[2:]
    slower = [row["passes"]["both"]["timing"]["ms_p50"] for row in figures["blocks"][:2]]
    assert stash10.rstrip("| ").endswith(" 1.00")
    assert sdpa.rstrip("| ").endswith(f" {slower[1] / slower[0]:.2f}")
    assert figures["blocks"][2]["reason"] in xformers
    assert figures["machine"]["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--tokens", "0"], "--tokens is 0"),
        (["--layers", "0", "1"], "--layers is 0"),
        (["--seconds", "0"], "--seconds is 0.0"),
        (["--sequences", "S = 151"], "--sequences 'S = 151' is unknown; expected one of: S = 150"),
    ],
)
def test_wrong_settings_are_one_line(flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "blocks", *flags, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_the_part_runs_in_a_child_and_says_what_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(Plan.of(CPU, True), blocks=replace(SMALL, providers=["stash10"]))
    outcome = run_blocks(plan, 120.0, None)
    assert (outcome.status, outcome.reason) == ("ok", None)
    (row,) = outcome.figures
    assert row["passes"]["both"]["timing"]["samples"] >= 5
    monkeypatch.setattr(parts, "_OWN_SHARE", 0.0)
    cut = run_blocks(plan, 120.0, None)
    assert (cut.status, [row["reason"] for row in cut.figures]) == ("cut", [CUT])


def test_the_plan_for_a_gpu_has_the_papers_shapes() -> None:
    def of(quick: bool) -> Any:
        return Plan.of(torch.device("cuda"), quick).blocks

    assert (of(False).size, of(False).tokens, of(False).layers) == ("paper", 65536, (1, 12))
    assert of(False).sequences == SEQUENCES
    assert of(False).providers == TIMED
    assert of(True).layers == (1,)
