"""Ranks share a run: several train what one trains, on the same clips, up to the order of float32 sums."""

import functools
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cacophony.engine.checkpoint import checkpoints, latest_checkpoint
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig, Stage
from cacophony.engine.distributed import World, choose_device, join_world
from cacophony.engine.late_flags import LateFlags
from cacophony.engine.telemetry import read_log
from cacophony.errors import InputError
from cacophony.models.weights import load_tensors

StartRanks = Callable[..., list[Any]]

# Notes of every step which clips it is made of, and checksums of their crops, captions and visible patches.
NOTE_STEPS = """
import json, os, zlib
import cacophony.engine.trainer as trainer
real, rank = trainer.make_step, os.environ["RANK"]
def checksum(tensor):
    return zlib.crc32(tensor.contiguous().numpy().tobytes())
def noted(updater, objective, batch, step, config):
    clips = []
    for number in range(batch.num_clips):
        clip = batch.select(number, number + 1)
        micro = objective.prepare(clip, step)[0]
        patches = micro.patches.kept if hasattr(micro, "patches") else micro.audio
        clips.append([clip.sample_index.tolist(), *map(checksum, (clip.wave, clip.token_ids, patches.values))])
    with open({notes!r} + "/" + rank, "a") as file:
        file.write(json.dumps(clips) + "\\n")
    return real(updater, objective, batch, step, config)
trainer.make_step = noted
"""


def noted(folder: Path, size: int) -> list[list[Any]]:
    """What the steps were made of, the ranks' clips in rank order."""
    ranks = [[json.loads(line) for line in (folder / str(rank)).read_text().splitlines()] for rank in range(size)]
    return [[clip for share in step for clip in share] for step in zip(*ranks, strict=True)]


def argv_of(stage: Stage, toml: Path, shards: Path, out: Path) -> list[str]:
    return ["train", stage, "--data", str(shards), "--preset", "demo", "--config", str(toml), "--out", str(out)]


def steady(config: Any) -> Any:
    """Adam divides a gradient by its size, so a parameter without any (a key's bias) would move by its rounding: eps is
    far above that here. Large steps would also make rounding grow from one to the next, so they are small."""
    return replace(config, update=replace(config.update, eps=1e-3, learning_rate=1e-4))


@dataclass(frozen=True)
class Run:
    """A run directory, and what its steps were made of."""

    out: Path
    steps: list[list[Any]]


RunOn = Callable[[Stage, int], Run]


@pytest.fixture(scope="module")
def run_on(
    start_ranks: StartRanks,
    mae_config: MaeRunConfig,
    contrastive_config: ContrastiveRunConfig,
    save_toml: Callable[[Any], Path],
    shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> RunOn:
    """Run a stage on so many ranks."""

    @functools.cache
    def run(stage: Stage, size: int) -> Run:
        toml = save_toml(steady(mae_config if stage == "mae" else contrastive_config))
        out, notes = tmp_path_factory.mktemp("run") / "run", tmp_path_factory.mktemp("notes")
        ranks = start_ranks(argv_of(stage, toml, shards, out), size, NOTE_STEPS.format(notes=str(notes)))
        for code, output in [rank.ended() for rank in ranks]:
            assert code == 0, output
        return Run(out, noted(notes, size))

    return run


def assert_same_curves_and_weights(run: Path, alone: Path, stage: str):
    """Budgets: losses 3e-6 of their value, norms 1e-5, weights 1e-6."""
    one, many = read_log(alone), read_log(run)
    assert [line["step"] for line in many] == [line["step"] for line in one] == list(range(1, 7))
    for name in ("loss", "gradient_norm", "learning_rate", *(("sam_loss",) if stage == "contrastive" else ())):
        budget = 1e-5 if name == "gradient_norm" else 3e-6
        assert [line[name] for line in many] == pytest.approx([line[name] for line in one], rel=budget), name
    expected = load_tensors(latest_checkpoint(alone) / "model.safetensors")
    for path in (latest_checkpoint(run) / "model.safetensors", run / "model.safetensors"):
        found = load_tensors(path)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    states = [json.loads((latest_checkpoint(folder) / "state.json").read_text()) for folder in (alone, run)]
    assert states[0] == states[1]


@pytest.mark.parametrize(("stage", "size"), [("mae", 2), ("contrastive", 2), ("contrastive", 4)])
def test_ranks_train_the_run_of_one(run_on: RunOn, stage: Stage, size: int):
    alone, shared = run_on(stage, 1), run_on(stage, size)
    assert len(alone.steps) == 6
    assert shared.steps == alone.steps
    assert_same_curves_and_weights(shared.out, alone.out, stage)
    assert all(line["communication_share"] == 0.0 for line in read_log(alone.out))
    assert all(0.0 < line["communication_share"] < 1.0 for line in read_log(shared.out))


def test_every_rank_writes_its_share_of_the_moments(run_on: RunOn):
    """All together what one rank writes, but for the names in the files."""
    alone, shared = (latest_checkpoint(run_on("contrastive", size).out) for size in (1, 4))
    shares = [f"optimizer-{rank:05d}-of-00004.safetensors" for rank in range(4)]
    assert {path.name for path in shared.iterdir()} == {"model.safetensors", "state.json", "manifest.json", *shares}
    elements = [sum(t.numel() for name, t in load_tensors(shared / f).items() if "exp" in name) for f in shares]
    whole = sum(t.numel() for name, t in load_tensors(alone / "optimizer.safetensors").items() if "exp" in name)
    assert sum(elements) == whole
    assert min(elements) > 0


@pytest.mark.parametrize("size", [1, 4])
def test_a_run_continues_on_another_number_of_ranks(
    start_ranks: StartRanks, run_on: RunOn, shards: Path, tmp_path: Path, size: int
):
    begun, alone, out = run_on("contrastive", 2), run_on("contrastive", 1), tmp_path / "run"
    shutil.copytree(begun.out, out)
    shutil.rmtree(checkpoints(out)[-1])
    argv = ["train", "contrastive", "--data", str(shards), "--out", str(out), "--resume"]
    ranks = start_ranks(argv, size, NOTE_STEPS.format(notes=str(tmp_path)))
    for code, output in [rank.ended() for rank in ranks]:
        assert code == 0, output
        assert ("continuing from step 4" in output) or output == ""
    assert noted(tmp_path, size) == alone.steps[4:]
    assert_same_curves_and_weights(out, alone.out, "contrastive")


def test_a_batch_that_the_ranks_cannot_share_is_one_line(
    start_ranks: StartRanks, save_toml: Callable[[Any], Path], mae_config: MaeRunConfig, shards: Path, tmp_path: Path
):
    toml, out = save_toml(replace(mae_config, batch_size=5)), tmp_path / "run"
    for code, output in [rank.ended() for rank in start_ranks(argv_of("mae", toml, shards, out))]:
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
    assert world.from_main("a message", "text") == "text"
    world.barrier()
    world.close()


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused(device: str):
    with pytest.raises(InputError, match=f"device '{device}'"):
        choose_device(device)


@pytest.fixture
def current_device(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Pretend that there are four GPUs; holds the devices that were made the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_process_alone_computes_on_the_gpu_that_was_asked_for(current_device: list[torch.device]):
    assert join_world("cuda:1") == World(0, 1, torch.device("cuda:1"))
    assert current_device == [torch.device("cuda:1")]


def test_ranks_wait_for_each_other_on_their_own_gpus(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[int] | None] = []
    monkeypatch.setattr(dist, "barrier", lambda device_ids: asked.append(device_ids))
    for device in ("cuda:1", "cpu"):  # the sixth of eight ranks, on the second machine of four GPUs
        World(5, 8, torch.device(device)).barrier()
    assert asked == [[1], None]


def ranks_in_environment(monkeypatch: pytest.MonkeyPatch, **values: str | int) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody listens who knows nothing of ranks."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch, taken_port: int):
    ranks_in_environment(monkeypatch, RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=taken_port)
    with pytest.raises(InputError, match=f"127.0.0.1:{taken_port} .*port is in use; choose another"):
        join_world("cpu", 5.0)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_find_each_other_say_where_they_looked(monkeypatch: pytest.MonkeyPatch, rank: int):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks_in_environment(monkeypatch, RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with pytest.raises(InputError, match=f"127.0.0.1:{port} .*did not find each other within 1 s.*check the address"):
        join_world("cpu", 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": 2, "RANK": "-1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": 2, "RANK": 2}, "RANK is 2 and WORLD_SIZE 2"),
        ({"WORLD_SIZE": 2, "RANK": 0}, "MASTER_ADDR or MASTER_PORT is not set; start the ranks with torchrun"),
    ],
)
def test_an_environment_that_makes_no_sense_is_named(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str | int], message: str
):
    ranks_in_environment(monkeypatch, **values)
    with pytest.raises(InputError, match=message):
        join_world("cpu", 1.0)
