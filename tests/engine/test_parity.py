"""Parity: what runs here beside plain PyTorch, and an exit code that tells."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.__main__ import main
from cacophony.data.noise import noise_batch
from cacophony.engine import parity
from cacophony.kernels import backend
from cacophony.kernels.accuracy import named_tensors
from cacophony.kernels.linear import linear_reference
from cacophony.kernels.spec import Spec
from cacophony.kernels.specs import SPECS
from cacophony.kernels.triton_runtime import INTERPRETING
from cacophony.models.model_directory import read_model
from torch import Tensor

Refused = Callable[[list[str]], str]


def run(model: Path, tmp_path: Path, *flags: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Exit code, and the rows by what and precision."""
    code = main(["parity", str(model), "--device", "cpu", "--json", str(tmp_path / "parity.json"), *flags])
    rows = json.loads((tmp_path / "parity.json").read_text())["rows"]
    return code, {(row["what"], row["precision"]): row for row in rows}


@pytest.mark.parametrize("stage", ["mae", "contrastive"])
def test_the_reference_path_is_within_its_own_budget(request: pytest.FixtureRequest, stage: str, tmp_path: Path):
    code, rows = run(request.getfixturevalue(f"{stage}_run"), tmp_path, "--clips", "2", "--backend", "reference")
    assert code == 0
    assert all(row["ok"] and row["error"] == row["reference_error"] for row in rows.values())
    steps = {(f"{what} of a step", precision) for what in ("losses", "gradients") for precision in ("fp32", "bf16")}
    assert rows.keys() >= steps | {(spec.name, "fp32") for spec in SPECS if takes_numbers(spec)}
    # In float32 the step is exact to rounding; in bfloat16 it is not: the truth is neither of them.
    assert rows["gradients of a step", "fp32"]["error"] < 1e-2 * rows["gradients of a step", "bf16"]["error"]
    assert rows["gradients of a step", "fp32"]["error"] > 0.0


def takes_numbers(spec: Spec) -> bool:
    """Whether an op has an input with rounding errors: patches are chosen by integers."""
    inputs = (case.inputs(torch.device("cpu"), torch.float32) for case in spec.cases if not case.paper)
    return any(tensor.is_floating_point() for tree in inputs for _, tensor in named_tensors(tree))


@pytest.mark.skipif(not INTERPRETING, reason="runs the fused path on a CPU")
@pytest.mark.parametrize(("stage", "steps"), [("mae", 1), ("contrastive", 4)])
def test_a_step_on_the_fused_path_is_within_its_budget(
    request: pytest.FixtureRequest, stage: str, steps: int, monkeypatch: pytest.MonkeyPatch
):
    """Stage 1 has no parameter of one number: a single step tells enough."""
    model = read_model(request.getfixturevalue(f"{stage}_run"))
    monkeypatch.setattr(parity, "_STEPS", steps)
    monkeypatch.setattr(parity, "noise_batch", functools.partial(noise_batch, seconds=(0.5, 1.0), tokens=(4, 8)))
    rows = list(parity.model_rows(model, "fused", torch.device("cpu"), ("fp32",), clips=2))
    assert [row.what for row in rows] == ["losses of a step", "gradients of a step"]
    assert all(row.ok and row.path == "fused" for row in rows), rows


def use_as_fused(monkeypatch: pytest.MonkeyPatch, implementation: Callable[..., Any]) -> None:
    op = dataclasses.replace(backend._ops["linear"], fused={"cpu": implementation})
    monkeypatch.setitem(backend._ops, "linear", op)


def slightly_wrong(x: Tensor, weight: Tensor, bias: Tensor, activation: Any) -> Tensor:
    return linear_reference(x, weight, bias, activation) * 1.0001


def wrong_gradient(x: Tensor, weight: Tensor, bias: Tensor, activation: Any) -> Tensor:
    return linear_reference(x, weight, bias.detach() + 0.5 * bias - 0.5 * bias.detach(), activation)


def not_a_number(x: Tensor, weight: Tensor, bias: Tensor, activation: Any) -> Tensor:
    return linear_reference(x, weight, bias, activation) * float("nan")


@pytest.mark.parametrize("implementation", [slightly_wrong, wrong_gradient, not_a_number])
def test_a_wrong_implementation_is_beyond_its_budget(
    mae_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    implementation: Callable[..., Any],
):
    use_as_fused(monkeypatch, implementation)
    code, rows = run(mae_run, tmp_path, "--precision", "fp32", "--clips", "2")
    assert code == 1
    beyond = {what for (what, _), row in rows.items() if not row["ok"]}
    assert beyond >= {"linear", "gradients of a step"}
    assert rows["linear", "fp32"]["path"] == "fused"
    assert rows["attention", "fp32"]["path"] == "reference"
    captured = capsys.readouterr()
    assert captured.out.count("BEYOND ITS BUDGET") == len(beyond)
    assert f"{len(beyond)} of {len(rows)} comparisons are beyond their budget" in captured.err


def test_another_order_of_sums_is_within_the_budget(mae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def halves(x: Tensor, weight: Tensor, bias: Tensor, activation: Any) -> Tensor:
        middle = weight.shape[1] // 2
        part = torch.nn.functional.linear(x[..., :middle], weight[:, :middle])
        whole = part + torch.nn.functional.linear(x[..., middle:], weight[:, middle:]) + bias
        return linear_reference(whole, torch.eye(len(bias)), torch.zeros_like(bias), activation)

    use_as_fused(monkeypatch, halves)
    code, rows = run(mae_run, tmp_path, "--precision", "fp32", "--clips", "2")
    assert code == 0
    assert rows["linear", "fp32"]["error"] != rows["linear", "fp32"]["reference_error"]


def test_wrong_input_is_named(refused: Refused, mae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "model directory" in refused(["parity", str(tmp_path)])
    assert "--clips" in refused(["parity", str(mae_run), "--clips", "1"])
    monkeypatch.setitem(backend._ops, "linear", dataclasses.replace(backend._ops["linear"], fused={}))
    message = refused(["parity", str(mae_run), "--backend", "fused", "--device", "cpu"])
    assert "no fused linear" in message
