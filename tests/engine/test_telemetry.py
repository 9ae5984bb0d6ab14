"""The log, its picture and its rates."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.engine.config import ContrastiveRunConfig
from cacophony.engine.gpus import peak_flops
from cacophony.engine.telemetry import Meter, RunLog, read_log
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LINE = {
    "loss": 2.0,
    "learning_rate": 0.1,
    "gradient_norm": 1.0,
    "skipped_steps": 0,
    "clips_per_s": 1.0,
    "tokens_per_s": 9.0,
    "model_tflops_per_s": 0.1,
    "data_wait_share": 0.0,
}


def write_log(run: Path, steps: range, first_step: int = 0, **values: Any):
    run.mkdir(exist_ok=True)
    with RunLog(run, "title", 10, first_step) as log:
        for step in steps:
            log.record({"step": step} | LINE | values)


def board(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard")).Reload()


def test_every_step_of_a_run_is_a_line(contrastive_run: Path, contrastive_config: ContrastiveRunConfig):
    lines = read_log(contrastive_run)
    assert [line["step"] for line in lines] == list(range(1, contrastive_config.steps + 1))
    for line in lines:
        assert set(LINE) | {"contrastive", "captioning", "logit_scale", "sam_loss"} <= set(line)
        assert line["loss"] == pytest.approx(line["contrastive"] + line["captioning"], rel=1e-6)
        assert 0.0 <= line["data_wait_share"] <= 1.0
        assert min(line["clips_per_s"], line["tokens_per_s"], line["gradient_norm"]) > 0
    assert lines[0]["learning_rate"] == pytest.approx(5e-4)
    assert lines[1]["learning_rate"] == pytest.approx(1e-3)
    assert lines[-1]["learning_rate"] == pytest.approx(1e-5)


def test_tensorboard_has_the_same_curves(contrastive_run: Path):
    events = board(contrastive_run).Scalars("loss")
    lines = read_log(contrastive_run)
    assert [event.step for event in events] == [line["step"] for line in lines]
    assert [event.value for event in events] == pytest.approx([line["loss"] for line in lines], rel=1e-6)


@pytest.mark.parametrize("stage", ["mae", "contrastive"])
def test_the_loss_picture_is_a_whole_png(request: pytest.FixtureRequest, stage: str):
    data = (request.getfixturevalue(f"{stage}_run") / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")


def test_a_continued_log_forgets_what_came_after_the_checkpoint(tmp_path: Path):
    run = tmp_path / "run"
    write_log(run, range(1, 6), loss=3.0)
    write_log(run, range(4, 8), first_step=3, loss=1.0)
    assert [(line["step"], line["loss"]) for line in read_log(run)] == [
        *((step, 3.0) for step in (1, 2, 3)),
        *((step, 1.0) for step in (4, 5, 6, 7)),
    ]
    assert [(event.step, event.value) for event in board(run).Scalars("loss")] == [
        (line["step"], line["loss"]) for line in read_log(run)
    ]


def test_a_run_that_starts_again_from_nothing_has_an_empty_log(tmp_path: Path):
    run = tmp_path / "run"
    write_log(run, range(1, 4))
    write_log(run, range(1, 3), loss=1.0)
    assert [(line["step"], line["loss"]) for line in read_log(run)] == [(1, 1.0), (2, 1.0)]
    assert [event.step for event in board(run).Scalars("loss")] == [1, 2]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path):
    run = tmp_path / "run"
    write_log(run, range(1, 4))
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_log(run)] == [1, 2, 3]
    write_log(run, range(3, 5), first_step=2)
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_the_log_stays_json_where_a_loss_is_not_a_number(tmp_path: Path):
    write_log(tmp_path, range(1, 3), loss=math.nan, gradient_norm=math.inf)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=refuse)["step"] in (1, 2)


def test_a_log_without_a_line_can_be_closed(tmp_path: Path):
    write_log(tmp_path, range(0))
    assert read_log(tmp_path) == []
    assert not (tmp_path / "loss.png").exists()


def test_rates_count_since_the_last_line_and_all_ranks(monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    meter = Meter(torch.device("cpu"), world_size=2)
    for wait in (1.0, 1.5):
        meter.add(8, 1000, 3 * 10**12)
        meter.add(8, 1000, 3 * 10**12)
        clock[0] += 4.0
        rates = meter.rates(loader_wait=wait)
        assert rates == pytest.approx(
            {
                "clips_per_s": 8.0,
                "tokens_per_s": 1000.0,
                "model_tflops_per_s": 3.0,
                "data_wait_share": 0.25 if wait == 1.0 else 0.125,
            }
        )


def test_a_cpu_has_no_known_peak():
    assert peak_flops(torch.device("cpu")) is None
