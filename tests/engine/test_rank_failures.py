"""A rank that dies, hangs, fails or was told something else is named by all, who end at once."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cacophony.engine.checkpoint import checkpoints
from cacophony.engine.config import MaeRunConfig

StartRanks = Callable[..., list[Any]]
HOST = socket.gethostname()

# At the third update of a rank something happens to it.
AT_THE_THIRD = """
import time
import cacophony.engine.update as update
from cacophony.errors import InputError
real, calls = update.Updater.update, 0
def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == 3 and os.environ["RANK"] == "{rank}":
        {what}
    return real(*args, **kwargs)
update.Updater.update = counted
"""


@pytest.fixture
def argv(mae_config: MaeRunConfig, save_toml: Callable[[Any], Path], shards: Path, tmp_path: Path) -> list[str]:
    toml = save_toml(replace(mae_config, timeout_seconds=15.0))
    named = ["--data", str(shards), "--preset", "demo", "--config", str(toml), "--out", str(tmp_path / "run")]
    return ["train", "mae", *named]


def last_line(output: str) -> str:
    assert "Traceback" not in output, output
    return output.splitlines()[-1]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_was_killed_is_named(start_ranks: StartRanks, argv: list[str], tmp_path: Path, victim: int):
    ranks = start_ranks(argv, before=AT_THE_THIRD.format(rank=victim, what="os.kill(os.getpid(), 9)"))
    assert ranks[victim].ended()[0] == -9
    code, output = ranks[1 - victim].ended()
    assert code == 1, output
    # Rank 0 keeps the store here, as an agent of torchrun does elsewhere.
    expected = f"rank 1 on {HOST} died" if victim else "rank 0 or its host, which keeps the ranks' store, is gone"
    assert last_line(output) == f"cacophony: {expected}; continue with --resume"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_hangs_is_named_by_all(start_ranks: StartRanks, argv: list[str], victim: int):
    expected = f"cacophony: rank {victim} on {HOST} hangs: the other ranks waited for 15 s (timeout_seconds); "
    ranks = start_ranks(argv, before=AT_THE_THIRD.format(rank=victim, what="time.sleep(1000)"))
    for code, output in [rank.ended() for rank in ranks]:
        assert code == 1, output
        assert last_line(output).startswith(expected)


def test_a_rank_that_hangs_before_the_first_step_is_named_by_all(start_ranks: StartRanks, argv: list[str]):
    hanging = """
import time
from cacophony.engine.distributed import World
real = World.barrier
World.barrier = lambda self: time.sleep(1000) if self.rank == 1 else real(self)
"""
    for code, output in [rank.ended() for rank in start_ranks(argv, before=hanging)]:
        assert code == 1, output
        assert last_line(output).startswith(f"cacophony: rank 1 on {HOST} hangs: the other ranks waited for 15 s")


def test_a_rank_that_fails_is_named_with_its_reason(start_ranks: StartRanks, argv: list[str]):
    ranks = start_ranks(argv, before=AT_THE_THIRD.format(rank=1, what='raise InputError("the reason")'))
    (code, output), (own_code, own_output) = [rank.ended() for rank in ranks]
    assert (own_code, last_line(own_output)) == (2, "cacophony: the reason")
    assert code == 1
    assert last_line(output) == f"cacophony: rank 1 on {HOST} failed: the reason"


def test_ranks_with_other_settings_are_named_before_anything_is_written(
    start_ranks: StartRanks, argv: list[str], tmp_path: Path
):
    ranks = start_ranks(argv, more=["--steps", "7", "--update.eps", "0.5"])
    for code, output in [rank.ended() for rank in ranks]:
        assert code == 2, output
        assert output == (
            f"cacophony: rank 1 on {HOST} differs from rank 0 on {HOST}: config.update.eps is 0.5, there 1e-08; "
            "config.steps is 7, there 6; start every rank with the same command, code and data\n"
        )
    assert not (tmp_path / "run").exists()


OTHER_CODE = """
import cacophony.engine.rank_agreement as agreement
agreement.code_facts = lambda: {{"torch": "2.13", "sources": "1234" if os.environ["RANK"] == "0" else "5678"}}
""".replace("{{", "{").replace("}}", "}")


def test_ranks_with_other_code_are_named(start_ranks: StartRanks, argv: list[str], tmp_path: Path):
    for code, output in [rank.ended() for rank in start_ranks(argv, before=OTHER_CODE)]:
        assert code == 2, output
        assert "rank 1" in output
        assert "code.sources is '5678', there '1234'" in output
    assert not (tmp_path / "run").exists()


def test_ranks_with_other_data_or_none_are_named(
    start_ranks: StartRanks, argv: list[str], held_out_shards: Path, tmp_path: Path
):
    for data, expected in ((held_out_shards, "differs from rank 0"), (tmp_path / "none", str(tmp_path / "none"))):
        for code, output in [rank.ended() for rank in start_ranks(argv, more=["--data", str(data)])]:
            assert code == 2, output
            assert len(output.splitlines()) == 1
            assert expected in output
            assert "data is" in output or data != held_out_shards
    assert not (tmp_path / "run").exists()


def test_a_disk_that_refuses_one_rank_spoils_the_checkpoint_of_all_and_ends_nothing(
    start_ranks: StartRanks, argv: list[str], tmp_path: Path
):
    refusing = """
import cacophony.engine.checkpoint_writer as writer
real = writer.write_files
def write_files(run, snapshot):
    if snapshot.step == 4 and os.environ["RANK"] == "1":
        raise OSError(28, "No space left on device")
    return real(run, snapshot)
writer.write_files = write_files
"""
    (code, output), (other_code, other_output) = [rank.ended() for rank in start_ranks(argv, before=refusing)]
    assert (code, other_code) == (3, 3), output + other_output
    assert output.count("the checkpoint of step 4 could not be written ([Errno 28] No space left on device)") == 2
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000006"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
