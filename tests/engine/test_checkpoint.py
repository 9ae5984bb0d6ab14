"""Checkpoints appear whole or not at all, come back exactly, and damage is named."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.engine import checkpoint
from cacophony.engine.checkpoint import (
    checkpoints,
    discard_unfinished,
    latest_checkpoint,
    load_state,
    save_checkpoint,
)
from cacophony.errors import InputError
from cacophony.models.tensor_shapes import load_into
from cacophony.models.weights import load_tensors
from torch import Tensor, nn

STATE = {"step": 3, "loader": {"step": 3, "seed": 2**63 - 1}, "skipped": 0}


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def moments(model: nn.Module) -> dict[str, Tensor]:
    return {f"exp_avg.{name}": torch.randn_like(p) for name, p in model.named_parameters()}


def save(run: Path, step: int, model: nn.Module | None = None, keep: int = 2, **state: Any) -> Path:
    model = model or network(step)
    return save_checkpoint(run, step, model.state_dict(), moments(model), STATE | state, keep=keep)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_checkpoint_comes_back_exactly(tmp_path: Path):
    model, state = network(0), moments(network(0))
    with torch.no_grad():
        next(model.parameters())[0] = torch.tensor([1e-45, -0.0, 3.4e38])  # subnormal, negative zero, nearly infinite
    path = save_checkpoint(tmp_path, 3, model.state_dict(), state, STATE, keep=1)
    assert path == latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000003"
    restored = network(1)
    load_into(restored, load_tensors(path / "model.safetensors"), path)
    for (_, found), (_, expected) in zip(restored.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    loaded = load_tensors(path / "optimizer.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert load_state(path) == STATE


def test_equal_states_are_equal_bytes(tmp_path: Path):
    for folder in ("a", "b"):
        torch.manual_seed(5)
        save(tmp_path / folder, 1)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        first, second = (tmp_path / folder / "checkpoints/step-00000001" / name for folder in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_the_newest_are_kept(tmp_path: Path):
    for step in (5, 10, 95, 100, 1000):
        save(tmp_path, step, keep=3)
    assert names(tmp_path) == ["step-00000095", "step-00000100", "step-00001000"]
    assert latest_checkpoint(tmp_path).name == "step-00001000"


@pytest.mark.parametrize("victim", ["save_tensors", "os.fsync", "Path.rename", "json.dumps"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_save_that_breaks_off_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str, error: BaseException | type[BaseException]
):
    before = save(tmp_path, 1)
    content = {path.name: path.read_bytes() for path in before.iterdir()}

    def broken(*args: Any, **kwargs: Any) -> None:
        raise error

    place = {"save_tensors": checkpoint, "os.fsync": os, "Path.rename": Path, "json.dumps": json}[victim]
    with monkeypatch.context() as patch:
        patch.setattr(place, victim.split(".")[-1], broken)
        with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            save(tmp_path, 2)
    if isinstance(error, OSError):
        assert "step-00000002" in str(caught.value)
        assert "No space left" in str(caught.value)
        assert "previous one is still valid" in str(caught.value)
        assert names(tmp_path) == ["step-00000001"]
    assert checkpoints(tmp_path) == [before]
    assert {path.name: path.read_bytes() for path in before.iterdir()} == content

    discard_unfinished(tmp_path)
    assert names(tmp_path) == ["step-00000001"]
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_an_old_checkpoint_that_is_being_deleted_never_looks_like_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, 1, keep=1)
    real = shutil.rmtree

    def killed_half_way(path: Path, **options: Any) -> None:
        if Path(path).exists():
            (Path(path) / "model.safetensors").unlink()
            raise KeyboardInterrupt
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_half_way)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2, keep=1)
    for path in checkpoints(tmp_path):
        load_tensors(path / "model.safetensors")


def test_a_run_without_checkpoints_is_refused(tmp_path: Path):
    assert checkpoints(tmp_path) == []
    with pytest.raises(InputError, match="no checkpoint"):
        latest_checkpoint(tmp_path)
    discard_unfinished(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_state_is_named(tmp_path: Path, content: bytes):
    path = save(tmp_path, 1)
    (path / "state.json").write_bytes(content)
    with pytest.raises(InputError, match=r"state\.json"):
        load_state(path)
