"""Ranks share a run: two of them train what one trains, up to the order of float32 sums."""

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.engine.checkpoint import latest_checkpoint
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig, Stage
from cacophony.engine.distributed import World, choose_device, join_world
from cacophony.engine.late_flags import LateFlags
from cacophony.engine.telemetry import read_log
from cacophony.engine.trainer import train
from cacophony.errors import InputError
from cacophony.models.weights import load_tensors

RANK = """
import os, sys
os.environ.update(RANK="{rank}", LOCAL_RANK="{rank}", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}")
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(log, 1)
os.dup2(log, 2)
import cacophony.engine.telemetry as telemetry
telemetry.loss_curves = lambda *args: None
from cacophony.__main__ import main
sys.exit(main({argv!r}))
"""


@pytest.fixture
def torchrun(
    start_python: Callable[[str], BaseProcess], tmp_path: Path
) -> Callable[[list[str]], list[tuple[int | None, str]]]:
    """Run a command on two ranks; returns each one's exit code and output."""

    def run(argv: list[str]) -> list[tuple[int | None, str]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        logs = [tmp_path / f"rank-{rank}.log" for rank in range(2)]
        ranks = [
            start_python(RANK.format(rank=rank, port=port, argv=argv, log=str(log))) for rank, log in enumerate(logs)
        ]
        for rank in ranks:
            rank.join(120)
            rank.kill()
        return [(rank.exitcode, log.read_text(encoding="utf-8")) for rank, log in zip(ranks, logs, strict=True)]

    return run


@pytest.mark.parametrize("stage", ["mae", "contrastive"])
def test_two_ranks_train_the_run_of_one(
    torchrun: Callable[[list[str]], list[tuple[int | None, str]]],
    request: pytest.FixtureRequest,
    save_toml: Callable[[Any], Path],
    shards: Path,
    tmp_path: Path,
    stage: Stage,
):
    """Budgets: losses 3e-6 of their value, weights 1e-6.

    Adam divides a gradient by its size, so a parameter without any (a key's bias) would move by its rounding: eps is
    far above that here. Large steps would also make rounding grow from one to the next, so they are small.
    """
    config: MaeRunConfig | ContrastiveRunConfig = request.getfixturevalue(f"{stage}_config")
    config = replace(config, update=replace(config.update, eps=1e-3, learning_rate=1e-4))
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    train(stage, config, shards, alone)
    argv = ["train", stage, "--data", str(shards), "--preset", "demo", "--config", str(save_toml(config))]
    for code, output in torchrun([*argv, "--out", str(shared)]):
        assert code == 0, output

    one, two = read_log(alone), read_log(shared)
    assert [line["step"] for line in two] == [line["step"] for line in one] == list(range(1, 7))
    for name in ("loss", "gradient_norm", "learning_rate", *(("sam_loss",) if stage == "contrastive" else ())):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=3e-6), name
    expected = load_tensors(latest_checkpoint(alone) / "model.safetensors")
    found = load_tensors(latest_checkpoint(shared) / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("state.json",):
        states = [json.loads((latest_checkpoint(run) / name).read_text()) for run in (alone, shared)]
        assert states[0] == states[1]


def test_a_batch_that_the_ranks_cannot_share_is_one_line(
    torchrun: Callable[[list[str]], list[tuple[int | None, str]]],
    save_toml: Callable[[Any], Path],
    mae_config: MaeRunConfig,
    shards: Path,
    tmp_path: Path,
):
    toml, out = save_toml(replace(mae_config, batch_size=5)), tmp_path / "run"
    argv = ["train", "mae", "--data", str(shards), "--out", str(out), "--preset", "demo", "--config", str(toml)]
    for code, output in torchrun(argv):
        assert code == 2, output
        assert "batch_size 5 is not divisible by 2 ranks" in output
        assert len(output.splitlines()) == 1
    assert not out.exists()


def test_one_process_is_a_world_of_its_own():
    world = join_world("cpu")
    assert world == World(0, 1, torch.device("cpu"))
    assert world.is_main
    rows = torch.arange(6.0).view(3, 2)
    assert torch.equal(world.gather(rows), rows)
    assert torch.equal(world.sum_(rows.clone()), rows)
    assert LateFlags(world).exchange(True, False) == [True, False]
    world.barrier()
    world.close()


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused(device: str):
    with pytest.raises(InputError, match=f"device '{device}'"):
        choose_device(device)
