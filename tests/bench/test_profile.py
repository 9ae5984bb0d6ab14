"""The profile of a step: every path's time is told apart by phase and op, and work by what the ops promise."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from cacophony.__main__ import main
from cacophony.bench.op_work import count_work
from cacophony.bench.profile import PathProfile, ProfileSettings, profile_step
from cacophony.bench.profile_table import profile_table, step_lines
from cacophony.bench.training_step import Variant, training_step
from cacophony.engine.config import Stage
from cacophony.engine.phases import PHASES

SETTINGS = ProfileSettings(stage="mae", clips=2, rounds=1)


@pytest.fixture(scope="module", params=["mae", "contrastive"])
def profiles(request: pytest.FixtureRequest) -> Sequence[PathProfile]:
    return [found for found, _ in profile_step(replace(SETTINGS, stage=request.param))]


def test_cells_fill_the_step_and_have_its_phases(profiles: Sequence[PathProfile]) -> None:
    assert [found.path for found in profiles] == ["reference", "fused"]
    for found in profiles:
        assert sum(cell.seconds for cell in found.cells) == pytest.approx(found.profiled_seconds, rel=1e-6)
        assert {cell.phase for cell in found.cells} >= set(PHASES)
        assert found.files == []
        assert not found.on_device


def test_both_paths_spend_in_the_same_ops(profiles: Sequence[PathProfile]) -> None:
    """Forward and backward, whether autograd calls an op's backward or we do; the update's ops are the arena's."""
    cells = {found.path: {(cell.phase, cell.op) for cell in found.cells} for found in profiles}
    assert {key for key in cells["fused"] ^ cells["reference"] if key[0] != "update"} == set()
    for phase in ("forward", "backward"):
        assert {(phase, op) for op in ("attention", "linear, mlp", "layer_norm", "patch_embed")} <= cells["reference"]
    assert ("update", "adamw") in cells["fused"]


def test_the_table_has_a_line_for_each_phase_and_op(profiles: Sequence[PathProfile]) -> None:
    roofs = {"copy_gb_per_s": 1.0, "matmul_tflop_per_s": {"float32": 0.1}}
    rows = [asdict(found) for found in profiles]
    head, _, *lines = profile_table(rows, roofs, "fp32").splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns[4:8] == ["reference ms", "share", "calls", "of roof"]
    assert columns[-1] == "fused/reference"
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[0] for line in found if line[0]] == [*PHASES, "between", "step"]
    linear = next(line for line in found if line[1] == "linear, mlp")
    assert all(linear[1:])
    assert float(linear[-1]) == pytest.approx(float(linear[8]) / float(linear[4]), abs=0.02)
    assert found[-1][5] == "100.0%"
    assert [line.split(":")[0].split(", ")[1] for line in step_lines(rows)] == ["reference", "fused"]
    one = profile_table(rows[:1], None, "fp32").splitlines()[0]
    assert "fused" not in one


@pytest.mark.parametrize("stage", ["mae", "contrastive"])
def test_the_ops_forward_work_is_the_models(stage: Stage) -> None:
    """FLOPs of the products that the ops promise add up to those the networks count, on a ragged batch."""
    step = training_step(stage, "demo", 3, "fp32", Variant("reference", "packed"), torch.device("cpu"))
    flops = {key: work.flops for key, work in count_work(step).items()}
    products = ("linear, mlp", "attention", "patch_embed", "attention_pool")
    forward = sum(flops.get(("forward", op), 0) for op in products)
    model = step().model_flops
    if stage == "mae":
        assert forward == pytest.approx(model / 3, rel=0.01)
    else:
        # Two gradients; each embeds twice, for its stash is 0. The captioning head is the loss's.
        assert model / 3 < forward < 2 * model / 3


def test_the_command_writes_traces_figures_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "profile"
    words = ["profile", "--stage", "mae", "--path", "fused", "--clips", "1", "--rounds", "1", "--out", str(out)]
    assert main([*words, "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert "| forward " in captured.out
    assert "mae, fused: a step takes" in captured.out
    assert "memory snapshots: none" in captured.err
    names = ["mae.fused.trace.json", "mae.json", "mae.timeline.png"]
    assert sorted(file.name for file in out.iterdir()) == names
    assert json.loads((out / names[0]).read_text())["traceEvents"]
    assert json.loads((out / names[1]).read_text())["profiles"][0]["path"] == "fused"
    assert (out / names[2]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--path", "fused,plain"], "--path is 'fused,plain'; expected one or both of reference,fused"),
        (["--path", "fused,fused"], "--path is 'fused,fused'"),
        (["--clips", "0"], "--clips is 0; expected at least 1"),
    ],
)
def test_wrong_words_are_named(
    flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["profile", "--stage", "mae", "--out", str(out), "--device", "cpu", *flags]) == 2
    assert complaint in capsys.readouterr().err
    assert not out.exists()


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "file"
    out.write_text("")
    assert main(["profile", "--stage", "mae", "--out", str(out), "--device", "cpu"]) == 2
    assert "is a file; expected a directory" in capsys.readouterr().err
