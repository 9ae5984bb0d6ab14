"""A GPU whose memory is full: one line that says what to lower, and a run that continues."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.__main__ import main
from cacophony.engine import commands, trainer

MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.50 GiB is free."
    " If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True."
)


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(MESSAGE)


def test_a_run_says_what_to_lower_and_continues_with_it(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    real = trainer.make_step
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_step", lambda *given: full() if given[3] == 4 else real(*given))
        assert main(command("mae", out)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("cacophony: CUDA out of memory. Tried to allocate 2.00 GiB; see with nvidia-smi")
    assert "--micro-batch-size (now 3) or --objective.stash (now 10)" in line
    assert main(command("mae", out, "--resume", "--allow-changed", "--micro-batch-size", "2")) == 0
    assert "continuing from step 4" in capsys.readouterr().err


def test_another_command_is_one_line_too(
    mae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.wav").touch()
    monkeypatch.setattr(commands, "load", full)
    assert main(["embed", str(mae_run), str(tmp_path / "a.wav"), "--out", str(tmp_path / "a.npz")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cacophony: CUDA out of memory. Tried to allocate 2.00 GiB; ")
    assert line.endswith("or give --device cpu")
