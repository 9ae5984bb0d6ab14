"""The compile gate: the committed table is true, and what must fail does.

Kernels compile only where they were defined outside Triton's interpreter, so in another process than these tests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cacophony.__main__ import main
from cacophony.bench import compile_gate
from cacophony.kernels.triton_runtime import HAS_TRITON

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")

COMMITTED = Path(compile_gate.__file__).with_name("compile_table.md")

KERNELS = """
import dataclasses, json
import torch
from cacophony.bench.compile_gate import PaperLaunch, compile_launch, problems
from cacophony.kernels.layer_norm import SPEC
from cacophony.kernels.triton_runtime import jit, launch, record_launches, tensor_descriptor, tl

@jit
def hoard(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b, c = tl.load(x + i), tl.load(x + N + i), tl.load(x + 2 * N + i)
    s = tl.sum(a * b * c)
    tl.store(y + i, a * s + b * c)

@jit
def multiply(x, y, z, PRECISION: tl.constexpr):
    i = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(z + i, tl.dot(tl.load(x + i), tl.load(y + i), input_precision=PRECISION))

@jit(do_not_specialize=["seed"])
def specialise(x, none, one, sixteen, seed, large, ratio, N: tl.constexpr):
    if none is None:
        tl.store(x + tl.arange(0, N), (one + sixteen + seed + large + ratio).to(tl.float32))

@jit
def described(x, y):
    tl.store(y + tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :], x.load([0, 0]))

narrow, wide = (torch.empty(4096, device="meta", dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
with record_launches() as launches:
    launch(hoard, (1,), wide, wide, N=8192, num_warps=1)
    launch(multiply, (1,), wide, wide, wide, PRECISION="ieee")
    launch(multiply, (1,), narrow, narrow, wide, PRECISION="tf32")
    launch(specialise, (1,), wide, None, 1, 32, 1, 2**40, 0.5, N=64)
matrix = dataclasses.replace(SPEC, name="matrix", tensor_cores=True)
for spec, recorded in zip((SPEC, SPEC, matrix, matrix), launches, strict=True):
    compiled = compile_launch(PaperLaunch(spec, spec.cases[0], recorded), 90)
    print(json.dumps([*problems([compiled]), compiled.tensor_core_instruction]))
with record_launches() as launches:
    launch(described, (1,), tensor_descriptor(narrow.view(64, 64), (64, 64)), narrow)
for architecture in (80, 90):
    print(json.dumps(compile_launch(PaperLaunch(SPEC, SPEC.cases[0], launches[0]), architecture).problems))
"""

FLOAT32_ATTENTION = """
import json
import torch
from cacophony.bench.compile_gate import compile_launch, paper_launches

for paper in paper_launches(80, torch.float32):
    if paper.spec.name == "attention" and paper.case.name == "stage 1, encoder":
        print(json.dumps(compile_launch(paper, 80).problems))
"""


def run(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows(table: str) -> dict[tuple[str, ...], list[str]]:
    """Figures by (op, case, kernel, architecture), of the architectures that count."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {tuple(row[:4]): row[4:] for row in cells[2:] if row[3] in ("80", "90")}


def triton_version(table: str) -> str:
    return table.partition("with Triton ")[2].partition(":")[0]


def test_the_committed_table_is_true(tmp_path: Path) -> None:
    run("-m", "cacophony", "bench", "compile", "--arch", "80", "90", "--out", str(tmp_path / "table.md"))
    found, committed = (tmp_path / "table.md").read_text(), COMMITTED.read_text()
    assert rows(found).keys() == rows(committed).keys(), "run `cacophony bench compile --out bench/compile_table.md`"
    if triton_version(found) == triton_version(committed):
        assert rows(found) == rows(committed), "run `cacophony bench compile --out bench/compile_table.md`"


def test_spills_idle_tensor_cores_and_idle_descriptors_are_problems(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(KERNELS)
    spilling, scalar, matrix, specialised, ampere, hopper = map(
        json.loads, run(str(tmp_path / "kernels.py")).splitlines()
    )
    assert "hoard on sm_90 spills" in spilling[0]
    assert any("multiply on sm_90 multiplies matrices without the tensor cores" in problem for problem in scalar)
    assert any("SPEC does not say tensor_cores" in problem for problem in scalar)
    assert matrix in (["wgmma.mma_async"], ["mma.sync"])
    assert ampere == [
        "layer_norm (odd): described on sm_80 takes tensor descriptors and reads them without the TMA unit"
    ]
    assert hopper == []
    assert specialised == ["matrix: its SPEC says tensor_cores=True, and no kernel of it multiplies matrices", ""]


def test_float32_attention_of_the_audio_encoder_fits_an_a100(tmp_path: Path) -> None:
    (tmp_path / "attention.py").write_text(FLOAT32_ATTENTION)
    kernels = [json.loads(line) for line in run(str(tmp_path / "attention.py")).splitlines()]
    assert len(kernels) == 3
    found = [problem for problems in kernels for problem in problems]
    assert not [problem for problem in found if "shared memory" in problem or "spills" in problem]


def test_wrong_architectures_and_the_interpreter_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compile", "--arch", "75"]) == 2
    assert "75 is unknown" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["bench", "compile"]) == 2
        assert "TRITON_INTERPRET" in capsys.readouterr().err
