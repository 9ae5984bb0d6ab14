"""The log, its picture and its rates."""

import importlib.machinery
import json
import math
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cacophony.data.batch import collate
from cacophony.engine import trainer
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig
from cacophony.engine.distributed import World
from cacophony.engine.gpus import peak_flops
from cacophony.engine.objective import Report
from cacophony.engine.telemetry import Meter, RunLog, read_log
from cacophony.engine.trainer import train
from cacophony.engine.update import Outcome
from cacophony.errors import InputError
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


@pytest.mark.parametrize("picture", ["loss.png", "throughput.png"])
@pytest.mark.parametrize("stage", ["mae", "contrastive"])
def test_the_pictures_are_whole_pngs(request: pytest.FixtureRequest, stage: str, picture: str):
    data = (request.getfixturevalue(f"{stage}_run") / picture).read_bytes()
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


class TwoRanks(World):
    """A rank beside one that does the same."""

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return 2 * tensor


RATE = 16_000
BATCH = collate([np.zeros(3600 * RATE, np.int16), np.zeros(1800 * RATE, np.int16)], [0, 1], None)


def outcome(gradients: int) -> Outcome:
    report = Report({}, 1000, 3 * 10**12, 10**12)
    return Outcome(0.1, torch.tensor(1.0), torch.tensor(0), (report,) * gradients)


@pytest.mark.parametrize("gradients", [1, 2])
def test_rates_count_since_the_last_line_and_all_ranks(monkeypatch: pytest.MonkeyPatch, gradients: int):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    meter = Meter(TwoRanks(0, 2, torch.device("cpu")))
    for wait, end in ((1.0, 104.0), (0.5, 108.0)):
        with meter.stopwatch.span("loading"):
            clock[0] += wait
        for _ in range(2):
            with meter.stopwatch.span("step"):
                if gradients == 2:
                    with meter.stopwatch.span("ascent"), meter.stopwatch.span("collective"):
                        clock[0] += 0.5
                clock[0] += 1.0
            meter.add(BATCH, outcome(gradients))
        clock[0] = end
        rates = meter.rates()
        assert rates.pop("peak_resident_bytes") > 10**7
        expected = {
            "clips_per_s": 2.0,  # SAM's second gradient reads no other clips
            "audio_hours_per_s": 1.5,
            "tokens_per_s": 1000.0 * gradients,
            "model_tflops_per_s": 3.0 * gradients,
            "hardware_tflops_per_s": 4.0 * gradients,
            "data_wait_share": wait / 4,
            "communication_share": 0.25 * (gradients - 1),
        }
        assert rates == pytest.approx(expected | ({"sam_share": 1 / 3} if gradients == 2 else {}))


def test_utilisation_is_of_the_peak_of_all_ranks(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("cacophony.engine.telemetry.peak_flops", lambda device: 6e12)
    meter = Meter(TwoRanks(0, 2, torch.device("cpu")))
    meter.add(BATCH, outcome(1))
    clock[0] = 2.0
    rates = meter.rates()
    assert rates["mfu"] == pytest.approx(0.25)
    assert rates["hfu"] == pytest.approx(1 / 3)


def test_captions_that_predict_nothing_are_counted():
    meter = Meter(TwoRanks(0, 2, torch.device("cpu")))
    meter.add(BATCH, outcome(1))
    assert "captions_without_target" not in meter.rates()
    captions = [np.array([0, 5, 2], np.int32), np.array([0], np.int32), np.zeros(0, np.int32)]
    meter.add(collate([np.zeros(RATE, np.int16)] * 3, [0, 1, 2], captions), outcome(1))
    assert meter.rates()["captions_without_target"] == 2 * 2


def test_time_without_a_step_can_be_left_out(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    meter = Meter(World(0, 1, torch.device("cpu")))
    clock[0] = 60.0
    meter.restart()
    meter.add(BATCH, outcome(1))
    clock[0] = 61.0
    assert meter.rates()["clips_per_s"] == pytest.approx(2.0)


def test_the_first_step_in_which_kernels_are_compiled_counts_in_no_rate(
    mae_config: MaeRunConfig, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real_clock, real_step, hours = time.perf_counter, trainer.make_step, [0]

    def slow_at_first(*given: Any) -> Any:
        hours[0] = 1
        return real_step(*given)

    monkeypatch.setattr("time.perf_counter", lambda: real_clock() + 3600 * hours[0])
    monkeypatch.setattr(trainer, "make_step", slow_at_first)
    train("mae", replace(mae_config, log_every_steps=3), shards, tmp_path / "run")
    first, second = read_log(tmp_path / "run")
    assert (first["step"], second["step"]) == (3, 6)
    assert first["clips_per_s"] > 10 * 3 * mae_config.batch_size / 3600  # with the first, 3 steps took an hour


def test_a_runs_log_says_what_sam_takes_and_what_is_computed_again(contrastive_run: Path, mae_run: Path):
    for line in read_log(contrastive_run):
        assert 0.0 < line["sam_share"] < 1.0
        assert line["hardware_tflops_per_s"] > 1.1 * line["model_tflops_per_s"]  # its stash is 0
        assert line["communication_share"] == 0.0
        assert line["peak_resident_bytes"] > 10**7
        assert line["audio_hours_per_s"] * 3600 == pytest.approx(2.5 * line["clips_per_s"], rel=0.25)
    for line in read_log(mae_run):
        assert "sam_share" not in line
        assert line["hardware_tflops_per_s"] == line["model_tflops_per_s"]


class FakeWandb(types.ModuleType):
    """Notes what a run would send."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.started: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> "FakeWandb":
        self.started.append(settings)
        return self

    def log(self, data: dict[str, Any], step: int) -> None:
        self.lines.append((step, data))

    def finish(self) -> None:
        self.finished += 1


def test_a_run_logs_to_wandb_where_asked_and_continues_there(
    mae_config: MaeRunConfig, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    out = tmp_path / "run"
    train("mae", replace(mae_config, wandb="sounds"), shards, out)
    train("mae", replace(mae_config, wandb="sounds"), shards, out, resume=True)
    first, second = fake.started
    assert (first["project"], first["name"]) == ("sounds", "run")
    assert first["config"]["batch_size"] == 8
    assert first["id"] == second["id"]
    assert fake.lines == [
        (line["step"], {name: value for name, value in line.items() if name != "step"}) for line in read_log(out)
    ]
    assert fake.finished == 2


def test_without_the_package_the_error_names_the_extra_and_nothing_is_written(
    mae_config: MaeRunConfig, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"cacophony-engine\[wandb\]"):
        train("mae", replace(mae_config, wandb="sounds"), shards, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cpu_has_no_known_peak():
    assert peak_flops(torch.device("cpu")) is None
