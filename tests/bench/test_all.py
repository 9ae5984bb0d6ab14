"""One command for everything: a part that fails is reported, the rest runs, and few packages are needed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.__main__ import main
from cacophony.bench import all as everything
from cacophony.bench.all import bench_all
from cacophony.bench.child import Finished
from cacophony.bench.from_checkout import ROOT
from cacophony.bench.kernels import CUT, KernelSettings, planned
from cacophony.bench.parts import Outcome, Plan, run_tests, time_kernels

STEP = {
    "stage": "mae",
    "provider": "reference",
    "layout": "packed",
    "reason": None,
    "timing": {
        "seconds": 2.0,
        "seconds_p20": 1.9,
        "seconds_p80": 2.1,
        "rounds": 3,
        "clips_per_s": 4.0,
        "valid_tokens_per_s": 5.0,
        "model_tflops_per_s": 6.0,
        "mfu": 0.25,
        "peak_bytes": 7_000_000_000,
        "fused_ops": [],
    },
}
PASS = {
    "timing": {"ms_p20": 0.9, "ms_p50": 1.0, "ms_p80": 1.1, "samples": 9, "extra_bytes": 5_000_000},
    "gb_per_s": 50.0,
    "tflop_per_s": 0.0,
    "roof_share": 0.5,
}
KERNEL = {
    "op": "layer_norm",
    "case": "odd",
    "dtype": "float32",
    "provider": "reference",
    "reason": None,
    "checked_on": "odd",
    "waits_for_device": False,
    "launches": {"forward": 1, "backward": 2, "both": 3},
    "passes": {"forward": PASS, "backward": PASS, "both": PASS},
}
BLOCK = {
    "sequences": "S = 150",
    "layers": 1,
    "provider": "stash10",
    "reason": None,
    "valid_tokens": 150,
    "peak_bytes": 3_000_000_000,
    "passes": {name: PASS | {"tflop_per_s": 7.0} for name in ("forward", "backward", "both")},
}
PROFILE = {
    "seconds": 0.1,
    "profiled_seconds": 0.2,
    "on_device": False,
    "cells": [{"phase": "forward", "op": "layer_norm", "seconds": 0.2, "calls": 7}],
    "work": [{"phase": "forward", "op": "layer_norm", "bytes": 10_000_000_000, "flops": 0}],
    "files": [],
}
DATA = {
    "clip_seconds": 10.0,
    "rows": [
        {
            "what": "loader",
            "provider": "native",
            "workers": 2,
            "reason": None,
            "rates": {
                "clips_per_s": 200.0,
                "audio_hours_per_s": 0.5,
                "bytes_per_s": 4e7,
                "cpu_seconds_per_clip": 0.002,
                "clip_seconds": 10.0,
            },
        }
    ],
    "demands": [{"preset": "paper_stage2", "gpu": "b200", "clips_per_s": 1500.0}],
}
UPDATE = {
    "lengths": "realistic",
    "provider": "gradcache",
    "clips": 4096,
    "micro_batch_size": 64,
    "stash": 0,
    "reason": None,
    "timing": {
        "seconds": 10.0,
        "seconds_p20": 9.9,
        "seconds_p80": 10.1,
        "rounds": 2,
        "clips_per_s": 409.6,
        "valid_tokens_per_s": 5.0,
        "model_tflops_per_s": 6.0,
        "mfu": 0.2,
        "peak_bytes": 60 * 2**30,
        "sam_over_plain": 2.0,
        "sam_and_adamw_seconds": 0.02,
        "sam_and_adamw_over_copy": 3.0,
    },
}
ROOFS = {"copy_gb_per_s": 100.0, "matmul_tflop_per_s": {"float32": 1.0}}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Every part stands in for itself: the kernels' is broken. Returns the seconds each was given."""
    given: dict[str, float] = {}

    def run_kernels(plan: Plan, seconds: float, roofs: Any) -> Outcome:
        given["kernels"] = seconds
        assert roofs == ROOFS
        raise RuntimeError("the part is broken")

    def run_steps(plan: Plan, seconds: float, stage: str) -> Outcome:
        given[stage] = seconds
        fused = STEP | {"provider": "fused", "timing": STEP["timing"] | {"seconds": 1.0}}
        return Outcome("ok", None, [STEP | {"stage": stage}, fused | {"stage": stage}])

    def run_blocks(plan: Plan, seconds: float, roofs: Any) -> Outcome:
        given["blocks"] = seconds
        assert roofs == ROOFS
        return Outcome("ok", None, [BLOCK])

    def run_profile(plan: Plan, seconds: float, stage: str) -> Outcome:
        given[f"profile {stage}"] = seconds
        return Outcome("ok", None, [PROFILE | {"stage": stage, "path": path} for path in ("reference", "fused")])

    monkeypatch.setattr(everything, "run_profile", run_profile)

    def run_updates(plan: Plan, seconds: float, roofs: Any) -> Outcome:
        given["updates"] = seconds
        assert roofs == ROOFS
        ours = {**UPDATE["timing"], "clips_per_s": 1024.0}
        return Outcome("ok", None, [UPDATE | {"provider": "fused", "stash": 3, "timing": ours}, UPDATE])

    monkeypatch.setattr(everything, "run_blocks", run_blocks)
    monkeypatch.setattr(everything, "run_data", lambda plan, seconds: Outcome("ok", None, DATA))
    monkeypatch.setattr(everything, "run_updates", run_updates)
    monkeypatch.setattr(everything, "run_roofs", lambda plan, seconds: Outcome("ok", None, ROOFS))
    monkeypatch.setattr(everything, "run_tests", lambda plan, seconds: Outcome("skipped", "no GPU"))
    monkeypatch.setattr(everything, "run_kernels", run_kernels)
    monkeypatch.setattr(everything, "run_steps", run_steps)
    return given


def test_a_failing_part_is_reported_and_the_rest_runs(
    parts: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    assert bench_all(file, quick=True, device="cpu") == 1
    assert list(parts) == ["kernels", "blocks", "mae", "contrastive", "updates", "profile mae", "profile contrastive"]
    figures = json.loads(file.read_text())
    assert set(figures) == {
        *("machine", "settings", "parts", "tests", "roofs", "kernels", "blocks", "steps", "step_ratios"),
        *("data", "updates", "update_ratios", "profiles"),
    }
    assert {name: part["status"] for name, part in figures["parts"].items()} == {
        "roofs": "ok",
        "tests": "skipped",
        "kernels": "failed",
        "blocks": "ok",
        "steps_mae": "ok",
        "steps_contrastive": "ok",
        "profile_mae": "ok",
        "profile_contrastive": "ok",
        "data": "ok",
        "updates": "ok",
    }
    assert figures["parts"]["kernels"]["reason"] == "RuntimeError: the part is broken"
    assert figures["step_ratios"]["mae"] == {"reference_over_fused": 2.0}
    assert figures["update_ratios"] == {"realistic": {"fused_over_gradcache": 2.5}}
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["parts"] == figures["parts"]
    assert summary["picture"].startswith("none: ")
    assert "kernels: failed in 0 s: RuntimeError: the part is broken" in Path(summary["markdown"]).read_text()


def test_time_left_over_falls_to_the_parts_after(parts: dict[str, float], tmp_path: Path) -> None:
    bench_all(tmp_path / "results.json", quick=True, device="cpu")
    assert parts["kernels"] > everything.QUICK_BUDGET_S * 0.25
    assert parts["updates"] > everything.QUICK_BUDGET_S * 0.7


def test_the_report_is_drawn_again_from_the_file(
    parts: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = KERNEL | {"case": "one row", "provider": "all", "reason": CUT, "passes": {}}
    monkeypatch.setattr(everything, "run_kernels", lambda plan, seconds, roofs: Outcome("cut", "late", [KERNEL, cut]))
    file = tmp_path / "results.json"
    assert main(["bench", "all", "--json", str(file), "--device", "cpu"]) == 0
    page, picture = file.with_suffix(".md"), file.with_suffix(".png")
    first = page.read_text()
    assert re.search(
        r"layer_norm +\| odd +\| float32 +\| reference +\| both +\| 1\.0000 +\| 0\.9000-1\.1000 +\| 50 ", first
    )
    assert CUT in first
    assert "## A step of stage contrastive" in first
    assert re.search(r"forward +[|] all +[|] +[|] +[|] 200\.000 +[|] 100\.0% +[|] 7 ", first)
    assert "- clips/s of fused over gradcache: 2.5, goal at least 2.5" in first
    assert "- SAM + AdamW, time over copying: 3, goal at most 1.2: MISSED" in first
    assert re.search(r"paper_stage2 +\| b200 +\| 1500 +\| 3\.0 ", first)
    assert re.search(
        r"S = 150 +\| 1 +\| stash10 +(\| 1\.000 +){3}\| 0\.900-1\.100 +\| 7 +\| 50% +\| 3\.00 +\| 1\.00 ", first
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    page.unlink()
    picture.unlink()
    assert main(["bench", "report", str(file)]) == 0
    assert page.read_text() == first
    assert picture.read_bytes().startswith(b"\x89PNG")
    file.write_text("{}")
    assert main(["bench", "report", str(file)]) == 2
    assert "was not written by" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named_before_the_work(
    parts: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "all", "--json", str(tmp_path / "absent" / "results.json")]) == 2
    assert "no such directory" in capsys.readouterr().err
    assert not parts


class Processes:
    """Children of the kernel bench: those before the last die at the cases named, each after the cases before it."""

    def __init__(self, deadly: list[str], returncode: int | None = 1) -> None:
        self.deadly = deadly
        self.returncode = returncode
        self.asked: list[int] = []

    def __call__(self, module: str, *, stdin: str, seconds: float) -> Finished:
        names = planned(KernelSettings(**json.loads(stdin)["settings"]))
        self.asked.append(len(names))
        lines = []
        for spec, case, dtype in names:
            if case.name in self.deadly:
                return Finished(lines, self.returncode, "an illegal memory access")
            lines.append(json.dumps(KERNEL | {"op": spec.name, "case": case.name, "dtype": dtype}))
        return Finished(lines, 0, "")


SETTINGS = KernelSettings(ops=["layer_norm"])


def test_a_case_that_takes_the_process_with_it_is_named_and_the_others_are_timed() -> None:
    run = Processes(["one row", "far from zero"])
    outcome = time_kernels(SETTINGS, None, 60.0, run)
    names = [case.name for _, case, _ in planned(SETTINGS)]
    assert outcome.status == "failed"
    assert outcome.reason == "; ".join(
        f"layer_norm, {name}, bfloat16: an illegal memory access" for name in ("one row", "far from zero")
    )
    assert [row["case"] for row in outcome.figures] == [n for n in names if n not in ("one row", "far from zero")]
    after = [len(names) - 1 - names.index(name) for name in ("one row", "far from zero")]
    assert run.asked == [len(names), *after]


def test_processes_that_only_die_are_not_started_for_ever() -> None:
    run = Processes([case.name for _, case, _ in planned(SETTINGS)])
    assert time_kernels(SETTINGS, None, 60.0, run).status == "failed"
    assert len(run.asked) == 2


def test_figures_of_a_process_that_was_stopped_are_kept() -> None:
    outcome = time_kernels(SETTINGS, None, 60.0, Processes(["large"], returncode=None))
    assert outcome.status == "cut"
    assert outcome.figures


def test_without_a_gpu_the_gpu_tests_are_skipped_and_say_so() -> None:
    outcome = run_tests(Plan.of(torch.device("cpu"), True), 1.0)
    assert outcome.status == "skipped"
    assert "no GPU" in (outcome.reason or "")


BLOCKED = (
    *("soundfile", "soxr", "tyro", "rich", "transformers", "tokenizers", "numba", "matplotlib", "tensorboard"),
    *("safetensors", "huggingface_hub", "hypothesis", "msgpack"),
)


def with_few_packages(*words: str, cwd: Path) -> list[str]:
    """Run ``words`` through from_checkout.py where the packages that are BLOCKED cannot be found; returns its lines."""
    code = f"""
import runpy, sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
blocked = lambda name: name.partition(".")[0] in {BLOCKED}
PathFinder.find_spec = classmethod(lambda _, name, *rest: None if blocked(name) else find(name, *rest))
sys.argv = ["from_checkout.py", *{words!r}]
runpy.run_path({str(ROOT / "bench" / "from_checkout.py")!r}, run_name="__main__")
"""
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_round_the_front_door_nothing_but_torch_triton_and_numpy_is_needed(tmp_path: Path) -> None:
    """A row of the kernel bench, a step of a stage, and its profile."""
    kernels = {"ops": ["layer_norm"], "cases": ["odd"], "providers": ["reference"], "rounds": 1, "seconds": 0.001}
    variant = {"provider": "reference", "layout": "packed"}
    code = f"""
import io, json, sys
from cacophony.bench import __main__, kernels, profile, roofline, steps
for module, asked in (
    (kernels, {{"roofs": None, "settings": {kernels!r}}}),
    (steps, {{"stages": ["mae"], "clips": 1, "rounds": 1, "variants": [{variant!r}]}}),
    (profile, {{"stage": "mae", "paths": ["fused"], "clips": 1, "rounds": 1}}),
):
    sys.stdin = io.StringIO(json.dumps(asked))
    assert module.main() == 0
"""
    kernel, step, profiled, *_ = with_few_packages("timeit", "-n1", "-r1", code, cwd=tmp_path)
    assert json.loads(kernel)["passes"]["both"]["timing"]["samples"] >= 5
    assert json.loads(step)["timing"]["rounds"] == 1
    assert json.loads(profiled)["path"] == "fused"


def test_the_tests_of_the_ops_need_pytest_alone(tmp_path: Path) -> None:
    tests = str(ROOT / "tests" / "kernels")
    lines = with_few_packages("pytest", "-q", "--collect-only", "-p", "no:cacheprovider", tests, cwd=tmp_path)
    assert any("test_specs.py" in line for line in lines)
    assert "error" not in lines[-1]


def test_pytest_benchmark_reports_what_the_stopwatch_measured(tmp_path: Path) -> None:
    file = tmp_path / "benchmark.json"
    argv = [sys.executable, "-m", "pytest", "bench", "-q", "-p", "no:cacheprovider", "-k", "layer_norm and odd"]
    # Where this suite is spread over cores, pytest-benchmark would take the child for one of its workers.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [*argv, f"--benchmark-json={file}"], cwd=ROOT, env=alone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    (forward, backward, both) = json.loads(file.read_text())["benchmarks"]
    for benchmark, name in ((forward, "forward"), (backward, "backward"), (both, "both")):
        assert name in benchmark["name"]
        figures = benchmark["extra_info"]
        assert benchmark["stats"]["median"] * 1e3 == pytest.approx(figures["timing"]["ms_p50"], rel=1e-3)
        assert figures["gb_per_s"] > 0
        assert figures["roof_share"] > 0
