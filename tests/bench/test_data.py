"""The data bench: what it measures, and what the tables say of it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.__main__ import main
from cacophony.bench import parts
from cacophony.bench.data import bench_data, make_shards
from cacophony.bench.data_demand import MFU, cores, data_figures, demands
from cacophony.bench.data_settings import PROVIDERS, DataSettings
from cacophony.bench.data_stages import STAGES
from cacophony.bench.data_tables import data_page, rate_table
from cacophony.bench.parts import Plan, run_data
from cacophony.bench.torch_loader import Clips, collate, padded_log_mel, read_wave
from cacophony.data.dali import dali_problem
from cacophony.data.shards import Shards
from cacophony.engine.gpus import GPUS
from cacophony.engine.presets import PRESETS
from cacophony.kernels.log_mel import log_mel

SMALL = {"clips": 6, "clip_seconds": 1.5, "crop_seconds": 1.0, "batch_size": 3, "workers": 1, "seconds": 0.02}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a small bench, and its figures."""
    folder = tmp_path_factory.mktemp("bench")
    file = folder / "data.json"
    flags = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    argv = ["bench", "data", *flags, "--device", "cpu", "--json", str(file), "--out", str(folder / "data.md")]
    assert main(argv) == 0
    return folder, json.loads(file.read_text())


def test_every_loader_and_stage_has_rates_or_a_reason(measured: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = measured
    rows = figures["data"]["rows"]
    assert [row["provider"] for row in rows if row["what"] == "loader"] == list(PROVIDERS)
    assert {row["what"] for row in rows} == {"loader", *STAGES}
    dali = dali_problem()
    for row in rows:
        if row["what"] == "copy":
            assert row["reason"] == "there is no device to copy to"
        elif row["provider"] == "dali" and dali:
            assert dali in row["reason"]
        else:
            rates = row["rates"]
            assert row["reason"] is None
            assert rates["clip_seconds"] == pytest.approx(1.0, abs=0.05)  # the crop's; frames of mel are whole
            assert rates["audio_hours_per_s"] == pytest.approx(rates["clips_per_s"] * rates["clip_seconds"] / 3600)
            assert rates["cpu_seconds_per_clip"] > 0.0
            if row["what"] == "mel":
                assert rates["bytes_per_s"] / rates["clips_per_s"] == pytest.approx(2 * 16_000)
    assert figures["machine"]["versions"]["torch"] == torch.__version__
    page = (folder / "data.md").read_text()
    assert page == data_page(figures["data"]) + "\n"
    assert "| paper_stage2" in page


def test_shards_that_are_there_are_taken(tmp_path: Path) -> None:
    path = make_shards(tmp_path, 4, 1.0)
    settings = DataSettings(
        data=str(path), clips=3, batch_size=2, workers=1, seconds=0.02, providers=["native"], device="cpu"
    )
    (loader, *_) = bench_data(settings, tmp_path)
    assert loader.rates is not None
    assert loader.rates["clip_seconds"] == 1.0


def test_the_rival_hears_the_same_clips_as_the_shards_hold(tmp_path: Path) -> None:
    with Shards.open(make_shards(tmp_path, 1, 1.0)) as shards:
        clip = shards.clip(0)
        whole = shards.read(0)
        (tmp_path / "clip.flac").write_bytes(shards.flac(clip))
    assert torch.equal(read_wave(tmp_path / "clip.flac", 100, 300), torch.from_numpy(whole[100:400]) / 32_768)
    clips = Clips([str(tmp_path / "clip.flac")], crop_seconds=0.5, mel=False)
    fetched = collate([clips[0], clips[0][:50]])
    assert fetched.batch.shape == (2, 8000)
    assert fetched.lengths.tolist() == [8000, 50]
    assert not fetched.batch[1, 50:].any()


def test_the_rivals_log_mel_is_ours_where_no_frame_reaches_past_the_end() -> None:
    """Budget 1e-4: float32 through other FFTs."""
    wave = 0.1 * torch.randn(16_000)
    theirs = padded_log_mel(wave)
    ours = log_mel(wave, torch.tensor([0, len(wave)])).frames
    torch.testing.assert_close(theirs, ours[: len(theirs)], rtol=0, atol=1e-4)


def test_the_demand_is_that_of_half_the_peak() -> None:
    found = {(demand.preset, demand.gpu): demand.clips_per_s for demand in demands(10.24)}
    assert {gpu for _, gpu in found} == set(GPUS)
    assert {preset for preset, _ in found} == {name for names in PRESETS.values() for name in names} - {"demo"}
    # 85 M parameters see each of 512 patches, with 6 FLOPs apiece, twice for SAM; decoder, head, attention on top.
    assert 400 < found["paper_stage2", "h100-80gb"] < 900
    assert found["paper_stage1", "a100-40gb"] == pytest.approx(
        found["paper_stage1", "b200"] * GPUS["a100-40gb"].bf16_flops / GPUS["b200"].bf16_flops
    )
    longer = {(demand.preset, demand.gpu): demand.clips_per_s for demand in demands(20.0)}
    cropped = {(demand.preset, demand.gpu): demand.clips_per_s for demand in demands(15.0)}
    key = ("paper_stage1", "b200")
    assert longer[key] == cropped[key] < found[key]
    with pytest.raises(ValueError, match=r"clip_seconds is 0\.1"):
        demands(0.1)


def test_cores_are_the_demand_times_what_a_clip_costs() -> None:
    rates = {"cpu_seconds_per_clip": 0.002, "clip_seconds": 10.0}
    rows = [
        {"what": "loader", "provider": "native", "rates": rates},
        {"what": "loader", "provider": "dali", "rates": None},
        {"what": "mel", "provider": "native", "rates": rates},
    ]
    assert cores({"clips_per_s": 1500.0}, rows) == {"native": 3.0}
    assert MFU == 0.5


def test_a_row_is_compared_with_the_rivals_per_core() -> None:
    rates = {name: 1.0 for name in ("clips_per_s", "audio_hours_per_s", "bytes_per_s", "clip_seconds")}
    rows = [
        {"what": what, "provider": provider, "workers": 1, "rates": rates | {"cpu_seconds_per_clip": seconds}}
        for what, provider, seconds in (
            ("loader", "native", 0.001),
            ("loader", "torch", 0.004),
            ("copy", "native", 0.5),
        )
    ]
    lines = rate_table(rows).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[-3:]] == ["4.00", "1.00", ""]


def test_where_nothing_was_measured_the_page_has_the_reasons_alone() -> None:
    rows = [{"what": "loader", "provider": "dali", "workers": 2, "reason": "DALI is not here", "rates": None}]
    figures = data_figures(rows)
    assert (figures["clip_seconds"], figures["demands"]) == (None, [])
    assert "DALI is not here" in data_page(figures)


def test_without_soundfile_the_part_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        parts.importlib.util, "find_spec", lambda name, *rest: None if name == "soundfile" else find(name, *rest)
    )
    outcome = run_data(Plan("cpu", True, None, None, None, None, None), 1.0)  # type: ignore[arg-type]
    assert outcome.status == "skipped"
    assert outcome.reason == "loading needs packages that are not installed: soundfile"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--workers", "0"], "--workers is 0; expected at least 1"),
        (["--batch-size", "65"], "--batch-size is 65; expected at most the 64 --clips"),
        (["--clip-seconds", "0.5"], "--clip-seconds is 0.5; expected 1 to 300"),
        (["--seconds", "0"], "--seconds is 0.0; expected more than 0"),
    ],
)
def test_wrong_arguments_are_one_line(flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "data", "--device", "cpu", *flags]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
