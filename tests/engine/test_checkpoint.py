"""Checkpoints appear whole or not at all, come back exactly, and damage is named."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.engine import checkpoint
from cacophony.engine.checkpoint import (
    DamagedCheckpoint,
    Snapshot,
    checkpoints,
    complete,
    discard_unfinished,
    latest_checkpoint,
    load_optimizer,
    load_state,
    newest_whole,
    set_aside,
    verify,
    write_files,
)
from cacophony.errors import InputError
from cacophony.models.tensor_shapes import load_into
from cacophony.models.weights import load_tensors
from torch import Tensor, nn

STATE = {"step": 3, "loader": {"step": 3, "seed": 2**63 - 1}, "skipped": 0}
FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def moments(model: nn.Module) -> dict[str, Tensor]:
    return {f"exp_avg.{name}": torch.randn_like(p) for name, p in model.named_parameters()}


def save(run: Path, step: int, keep: int = 2) -> Path:
    model = network(step)
    return write(run, step, model.state_dict(), moments(model), keep)


def write(run: Path, step: int, weights: dict[str, Tensor], optimizer: dict[str, Tensor], keep: int) -> Path:
    tensors = {"model.safetensors": weights, "optimizer.safetensors": optimizer}
    return complete(run, step, write_files(run, Snapshot(step, tensors, STATE)), keep=keep)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_an_old_one_that_somebody_reads_on_nfs_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There a file in use gets another name in its directory, which then cannot be deleted."""
    save(tmp_path, 1, keep=1)

    def busy(path: str, **_: Any) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        assert save(tmp_path, 2, keep=1) == latest_checkpoint(tmp_path)
        discard_unfinished(tmp_path)
    assert names(tmp_path) == [".step-00000001.tmp", "step-00000002"]
    discard_unfinished(tmp_path)
    assert names(tmp_path) == ["step-00000002"]


def test_a_checkpoint_comes_back_exactly(tmp_path: Path):
    model, state = network(0), moments(network(0))
    with torch.no_grad():
        next(model.parameters())[0] = torch.tensor([1e-45, -0.0, 3.4e38])  # subnormal, negative zero, nearly infinite
    path = write(tmp_path, 3, model.state_dict(), state, keep=1)
    verify(path)
    assert path == latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000003"
    restored = network(1)
    load_into(restored, load_tensors(path / "model.safetensors"), path)
    for (_, found), (_, expected) in zip(restored.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    loaded = load_optimizer(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert load_state(path) == STATE


def test_equal_states_are_equal_bytes(tmp_path: Path):
    for folder in ("a", "b"):
        torch.manual_seed(5)
        save(tmp_path / folder, 1)
    for name in FILES:
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
        with pytest.raises(OSError if isinstance(error, OSError) else KeyboardInterrupt):
            save(tmp_path, 2)
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


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_the_newest_whole_one(tmp_path: Path, name: str, how: str):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    assert newest_whole(tmp_path) == (newer, [])
    if (name, how) == ("manifest.json", "flipped"):
        text = (newer / name).read_text().replace('"bytes"', '"bites"')
        (newer / name).write_text(text)
    else:
        damage(newer / name, how)
    with pytest.raises(DamagedCheckpoint, match=r"step-00000002"):
        verify(newer)
    found, notes = newest_whole(tmp_path)
    assert found == older
    assert len(notes) == 1
    assert str(newer) in notes[0]

    set_aside(newer)
    assert latest_checkpoint(tmp_path) == older
    save(tmp_path, 2)
    assert names(tmp_path) == ["damaged-step-00000002", "step-00000001", "step-00000002"]


def test_where_no_checkpoint_is_whole_the_run_cannot_be_continued(tmp_path: Path):
    for step in (1, 2):
        damage(save(tmp_path, step) / "state.json", "flipped")
    with pytest.raises(InputError, match=r"no checkpoint is whole .*step-00000002.*step-00000001"):
        newest_whole(tmp_path)


def test_a_manifest_reaches_no_file_outside(tmp_path: Path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"bytes": 0, "sha256": ""}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpoint, match="secret: is missing"):
        verify(path)


def test_a_newer_format_is_refused_not_passed_over(tmp_path: Path):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(InputError, match=r"is of format 7, .* up to 1; update") as caught:
        newest_whole(tmp_path)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_the_files_of_all_ranks_are_read_together(tmp_path: Path):
    whole = torch.arange(12.0)
    parts = {
        "optimizer-00000-of-00002.safetensors": {"exp_avg.w[0:5]": whole[:5], "step.w": torch.tensor(3.0)},
        "optimizer-00001-of-00002.safetensors": {"exp_avg.w[5:12]": whole[5:]},
    }
    for name, tensors in parts.items():
        write_files(tmp_path, Snapshot(1, {name: tensors}, None))
    manifest = write_files(tmp_path, Snapshot(1, {"model.safetensors": {"w": whole}}, STATE))
    found = load_optimizer(complete(tmp_path, 1, manifest, keep=1))
    assert set(found) == {"exp_avg.w[0:5]", "exp_avg.w[5:12]", "step.w"}
