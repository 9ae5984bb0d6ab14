"""`train --limits` measures every part, trains and writes nothing, and says what to change."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cacophony.__main__ import main
from cacophony.data.batch import collate
from cacophony.engine import commands
from cacophony.engine import limits as module
from cacophony.engine.config import ContrastiveRunConfig, MaeRunConfig, Stage
from cacophony.engine.limits import Limits, describe, measure_limits, noise_like, sentence

BRIEF = "import cacophony.engine.commands as commands; commands.PART_SECONDS = 0.0\n"  # in ranks' processes


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "PART_SECONDS", 0.0)


def limits(**seconds: float | None) -> Limits:
    known = {"loader": 0.1, "copy": None, "device": 1.0, "collectives": None, "ascent": 0.0, "mfu": None, "both": 1.0}
    return Limits(batch_clips=8, ranks=1, **known | seconds)  # type: ignore[arg-type]


def test_the_command_says_what_limits_the_run_and_writes_nothing(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    for stage in ("mae", "contrastive"):
        assert main([*command(stage, out), "--limits"]) == 0
        *parts, last = capsys.readouterr().out.splitlines()
        names = ["loader alone", "device alone, on noise", "both"]
        assert [line[:28].strip() for line in parts if "clips/s" in line] == names
        assert any(line.startswith("  of that, SAM's ascent") for line in parts) == (stage == "contrastive")
        assert "limits this run" in last or "hold each other up" in last
        assert last.endswith(".")
    assert not out.exists()


def test_every_part_is_measured(contrastive_config: ContrastiveRunConfig, shards: Path) -> None:
    found = measure_limits("contrastive", contrastive_config, shards, part_seconds=0.05)
    assert found is not None
    assert min(found.loader, found.device, found.both) > 0.0
    assert 0.0 < found.ascent < found.device
    assert found.batch_clips == 8
    assert found.copy is None
    assert found.collectives is None


def test_sam_counts_at_the_steps_that_have_it(
    contrastive_config: ContrastiveRunConfig, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = module.make_step

    def counted(*arguments: Any) -> Any:
        report, outcome = real(*arguments)
        made.append(len(outcome.reports))
        return report, outcome

    monkeypatch.setattr(module, "make_step", counted)
    update = replace(contrastive_config.update, sam_every=3)
    assert measure_limits("contrastive", replace(contrastive_config, update=update), shards, part_seconds=0.0)
    assert made == [2 if number % 3 == 0 else 1 for number in range(len(made))]
    assert len(made) > 4


@pytest.mark.parametrize("stage", ["mae", "contrastive"])
def test_on_two_ranks_the_first_speaks_for_both(
    command: Callable[..., list[str]], start_ranks: Callable[..., list[Any]], tmp_path: Path, stage: Stage
) -> None:
    out = tmp_path / "run"
    ranks = start_ranks([*command(stage, out), "--limits"], before=BRIEF)
    (first, said), (second, nothing) = (rank.ended() for rank in ranks)
    assert (first, second, nothing) == (0, 0, ""), said + nothing
    *parts, last = said.splitlines()
    names = ["loader alone", "device alone, on noise", "both"]
    assert [line[:28].strip() for line in parts if "clips/s" in line] == names
    seconds, clips_per_s = re.findall(r"[\d.]+", next(line for line in parts if line.startswith("both")))
    assert float(clips_per_s) == pytest.approx(8 / float(seconds), rel=0.05)  # of both ranks
    (waiting,) = (line for line in parts if line.startswith("  of that, waiting for ranks"))
    assert 0 < int(re.findall(r"(\d+)%", waiting)[0]) < 100
    assert "limits this run" in last or "hold each other up" in last
    assert not out.exists()


@pytest.mark.parametrize(
    ("both", "last", "problem"),
    [
        (["--batch-size", "5"], [], "batch_size 5 is not divisible by 2 ranks; change batch_size"),
        ([], ["--seed", "7"], "rank 1 on .* differs from rank 0 on .*: config.seed is 7, there 0"),
        ([], ["--data", "nowhere"], "nowhere"),
    ],
)
def test_ranks_that_a_run_would_refuse_are_refused(
    command: Callable[..., list[str]],
    start_ranks: Callable[..., list[Any]],
    tmp_path: Path,
    both: list[str],
    last: list[str],
    problem: str,
) -> None:
    for code, said in [rank.ended() for rank in start_ranks([*command("mae", tmp_path), "--limits", *both], more=last)]:
        assert (code, len(said.splitlines())) == (2, 1), said
        assert re.search(problem, said)


def test_a_rank_that_dies_is_named(
    command: Callable[..., list[str]], start_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    dies = "import os, cacophony.engine.limits as m\nif os.environ['RANK'] > '0': m.noise_like = lambda *_: os._exit(9)"
    first, _ = start_ranks([*command("mae", tmp_path), "--limits", "--timeout-seconds", "20"], before=BRIEF + dies)
    code, said = first.ended()
    assert code == 1, said
    assert re.fullmatch(r"cacophony: rank 1 on \S+ died; continue with --resume", said.strip())


def test_shards_without_captions_are_refused_as_a_run_refuses_them(
    command: Callable[..., list[str]], mute_shards: Path, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    words = command("contrastive", tmp_path / "run", "--limits")
    words[words.index("--data") + 1] = str(mute_shards)
    assert "have no captions" in refused(words)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"loader": 2.0, "both": 2.1}, "The loader limits this run: the device could be 2.0 times as fast"),
        ({"loader": 0.9, "both": 1.8}, "Loader and device hold each other up: together they take 1.8 times"),
        ({"collectives": 0.4}, "Waiting for other ranks limits this run: 40% of a step; raise batch_size"),
        ({"copy": 0.2}, "Copying batches to the device limits this run: 20% of a step"),
        ({"mfu": 0.31}, "The device limits this run at 31% of its peak, as it should: set precision to bf16"),
        ({"ascent": 0.5}, r"SAM's ascent takes 50% of it (update.ascent_fraction, update.sam_every)."),
        ({}, "raise micro_batch_size (now 3) as far as memory goes."),
    ],
)
def test_the_sentence_names_the_bottleneck_and_the_field(
    mae_config: MaeRunConfig, measured: dict[str, float], expected: str
) -> None:
    found = limits(**measured)
    assert expected in sentence(found, mae_config)
    assert describe(found, mae_config).splitlines()[-1] == sentence(found, mae_config)


def test_a_device_with_nothing_to_change_is_said_so(mae_config: MaeRunConfig) -> None:
    assert "only more or faster devices" in sentence(limits(), replace(mae_config, micro_batch_size=8))


def test_noise_has_the_sizes_of_the_batch_and_none_of_its_sound() -> None:
    waves = [np.ones(n, np.int16) for n in (900, 40)]
    batch = collate(waves, [7, 3], [np.array([0, 9, 8, 2], np.int32), np.array([0, 2], np.int32)])
    noise = noise_like(batch, 0)
    assert torch.equal(noise.wave_offsets, batch.wave_offsets)
    assert torch.equal(noise.token_offsets, batch.token_offsets)
    assert torch.equal(noise.sample_index, batch.sample_index)
    assert torch.equal(noise.token_ids.sort().values, batch.token_ids.sort().values)
    assert noise.wave.dtype == torch.int16
    assert float(noise.wave.float().std()) == pytest.approx(3000, rel=0.1)
    assert torch.equal(noise_like(batch, 0).wave, noise.wave)
