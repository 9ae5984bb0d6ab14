"""A run does not depend on who decodes; it goes on past damaged members and stops where there are too many."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cacophony.__main__ import main
from cacophony.data.dali import dali_problem
from cacophony.engine import telemetry
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig
from cacophony.engine.trainer import train

needs_dali = pytest.mark.skipif(bool(dali_problem()), reason=dali_problem() or "DALI is here")
WEIGHTS = "checkpoints/step-00000006/model.safetensors"


@pytest.fixture(autouse=True)
def no_pictures(mae_run: Path, contrastive_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are most of the time of so short a run; the uninterrupted runs have theirs."""
    monkeypatch.setattr(telemetry, "loss_curves", lambda *_: None)


@needs_dali
def test_dali_trains_the_same_weights(
    contrastive_config: ContrastiveRunConfig, contrastive_run: Path, mae_run: Path, shards: Path, tmp_path: Path
) -> None:
    config = replace(contrastive_config, data=replace(contrastive_config.data, loader="dali"))
    train("contrastive", config, shards, tmp_path / "run", init=mae_run)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (contrastive_run / WEIGHTS).read_bytes()


@needs_dali
def test_a_run_continues_on_the_other_loader(
    mae_run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(mae_run, tmp_path / "run")
    shutil.rmtree(out / WEIGHTS.rpartition("/")[0])
    flags = ["--resume", "--data.loader", "dali"]
    assert main(["train", "mae", "--data", str(shards), "--out", str(out), *flags]) == 0
    assert "loader: dali, as asked for" in capsys.readouterr().err
    assert (out / WEIGHTS).read_bytes() == (mae_run / WEIGHTS).read_bytes()


@needs_dali
def test_dali_may_make_the_log_mel(mae_config: MaeRunConfig, mae_run: Path, shards: Path, tmp_path: Path) -> None:
    config = replace(mae_config, data=replace(mae_config.data, frontend="dali"))
    train("mae", config, shards, tmp_path / "run")

    def losses(run: Path) -> list[float]:
        return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]

    assert losses(tmp_path / "run") == pytest.approx(losses(mae_run), rel=1e-5)


@pytest.mark.parametrize("loader", ["native", pytest.param("dali", marks=needs_dali)])
@pytest.mark.parametrize("share", [0.05, 0.02])
def test_a_damaged_member_is_replaced_and_too_many_stop_the_run(
    command: Callable[..., list[str]],
    shards: Path,
    tmp_path: Path,
    share: float,
    loader: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One of the 40 clips, 2.5 %, is all zeros."""
    data = shutil.copytree(shards, tmp_path / "damaged")
    offset, size = map(int, (data / "shard-000000.idx").read_text().split()[3:5])
    with (data / "shard-000000.tar").open("r+b") as tar:
        tar.seek(offset)
        tar.write(bytes(size))
    flags = ["--data", str(data), "--data.loader", loader, "--data.max-bad-share", str(share)]
    code = main(command("mae", tmp_path / "run", *flags))
    lines = capsys.readouterr().err.splitlines()
    assert sum("is damaged" in line for line in lines) <= 1
    if share == 0.05:
        assert code == 0
        assert lines[-1] == "damaged members that were replaced: .: 1"
    else:
        assert code == 2
        assert lines[-1].startswith("cacophony: 1 damaged members among the 40 clips of an epoch, more than data.max_b")
