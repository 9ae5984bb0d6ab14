"""Launching: what runs, what is only recorded, and what works without Triton."""

import subprocess
import sys

import pytest
import torch
from cacophony.kernels.triton_runtime import (
    HAS_TRITON,
    cdiv,
    jit,
    launch,
    next_power_of_two,
    processors,
    record_launches,
    recording,
    tl,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


@jit
def add_kernel(x, y, amount, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets) + amount)


@needs_triton
def test_a_launch_covers_its_grid() -> None:
    x, y = torch.arange(16.0, device=DEVICE), torch.full((16,), -1.0, device=DEVICE)
    launch(add_kernel, (3,), x, y, 0.5, BLOCK=4)
    assert y.tolist() == [i + 0.5 for i in range(12)] + [-1.0] * 4
    launch(add_kernel, (0,), x, y, 9.0, BLOCK=4)
    assert y[0] == 0.5


@needs_triton
def test_overflow_does_not_warn() -> None:
    """A GPU does not, and warnings are errors here."""
    y = torch.empty(4, device=DEVICE)
    launch(add_kernel, (1,), torch.full((4,), 3e38, device=DEVICE), y, 3e38, BLOCK=4)
    assert bool(y.isinf().all())


@needs_triton
def test_launches_are_recorded_and_run_except_on_meta() -> None:
    x, y = torch.zeros(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    nothing = torch.empty(4, device="meta")
    with record_launches() as launches:
        assert recording()
        launch(add_kernel, (1,), x, y, 2.0, BLOCK=4, num_warps=1)
        launch(add_kernel, (7,), nothing, nothing, 3.0, BLOCK=2)
    assert not recording()
    launch(add_kernel, (1,), x, y, 2.0, BLOCK=4)
    assert y.tolist() == [2.0] * 4
    assert [entry.grid for entry in launches] == [(1,), (7,)]
    assert launches[0].options == {"BLOCK": 4, "num_warps": 1, "enable_fp_fusion": True}
    assert launches[1].arguments[2] == 3.0


def test_integers() -> None:
    assert [cdiv(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [next_power_of_two(n) for n in (0, 1, 2, 3, 768, 1024)] == [1, 1, 2, 4, 1024, 1024]
    assert processors(torch.device("meta")) == 132


def test_ops_can_be_imported_and_their_references_run_without_triton() -> None:
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.startswith("triton") else find(name, package)
import torch
from cacophony.kernels.specs import SPECS
from cacophony.kernels.triton_runtime import HAS_TRITON
from cacophony.kernels.backend import use_backend
assert not HAS_TRITON and "triton" not in sys.modules
for spec in SPECS:
    spec.op(**spec.cases[0].inputs(torch.device("cpu"), torch.float32))
try:
    with use_backend("fused"):
        spec = next(spec for spec in SPECS if spec.name == "linear")
        spec.op(**spec.cases[0].inputs(torch.device("cpu"), torch.float32))
except ValueError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "no fused" in result.stdout
