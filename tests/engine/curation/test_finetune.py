"""Training a cleaner: losses fall, kills leave no trace, ranks give what one gives, nothing is pickled."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cacophony.__main__ import main
from cacophony.data.curate.noisy_text import cleaner_inputs
from cacophony.data.curate.pairs import Pair, read_pairs, write_pairs
from cacophony.data.curate.scores import score_captions
from cacophony.data.curate.variants import Cleaner
from cacophony.engine.curation import finetune as module
from cacophony.engine.curation.finetune import finetune
from cacophony.engine.curation.finetune_config import Finetuning
from cacophony.engine.curation.finetune_pairs import split_pairs
from cacophony.engine.curation.finetune_state import Learner
from cacophony.engine.distributed import World

from ...data.curate.noisy import noisy_row
from ...data.curate.tiny_t5 import write_tiny_t5

ALONE = World(0, 1, torch.device("cpu"))
QUICK = Finetuning(
    held_out=0.25, epochs=3, batch_size=8, micro_batch_size=3, learning_rate=5e-3, warmup_steps=2, max_target_tokens=24
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pairs.jsonl, of 40 clips; base/, a T5 with random weights."""
    folder = tmp_path_factory.mktemp("finetune")
    rows = [noisy_row(number) for number in range(40)]
    pairs = []
    for row in rows:
        caption = row["texts"][0].split(",")[0] + "."
        pairs.append(Pair("freesound", row["id"], cleaner_inputs(row)[0], caption, "caption", caption, ()))
    others = [Pair("x", "1", "a", "", "empty", "", ()), Pair("x", "2", "b", "Hi Tom", "caption", "Hi Tom", ("name",))]
    write_pairs(folder / "pairs.jsonl", [*pairs, *others, pairs[0]])
    write_tiny_t5(folder / "base", [pair.text for pair in pairs])
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The cleaner of a run that nothing interrupted."""
    train(folder, folder / "whole")
    return folder / "whole"


def train(folder: Path, out: Path, config: Finetuning = QUICK, base: str = "base") -> dict[str, Any]:
    scores = finetune(folder / "pairs.jsonl", str(folder / base), out, config, ALONE)
    assert scores is not None
    return scores


def die(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_loss_falls_and_a_transformers_directory_with_scores_is_left(folder: Path, whole: Path) -> None:
    scores = json.loads((whole / "scores.json").read_text())
    losses = [epoch["held_out_loss"] for epoch in scores["history"]]
    names = {path.name for path in whole.iterdir()}

    assert losses[0] < math.log(300)  # below knowing nothing
    assert losses[-1] < 0.7 * losses[0]
    assert scores["epoch"] == 2
    assert scores["left_out"] == {"empty": 1, "flagged": 1, "repeated": 1}
    assert scores["pairs"] + scores["texts"] == 40
    assert scores["residue"]["device"]["inputs"] == 1.0
    assert scores["residue"]["device"]["wanted"] == 0.0
    assert {"model.safetensors", "config.json", "tokenizer.json", "scores.json", "losses.png"} <= names
    assert {Path(name).suffix for name in names} == {".safetensors", ".json", ".png"}
    assert not list(folder.glob(".*.curating"))
    assert len(Cleaner(whole, torch.device("cpu"), "float32").greedy(["A dog"], max_new_tokens=5, batch_tokens=99)) == 1


@pytest.mark.parametrize("place", ["second epoch", "scores", "result"])
def test_killed_anywhere_and_called_again_it_ends_the_same(
    folder: Path, whole: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Learner.save
    with monkeypatch.context() as patch:
        if place == "second epoch":
            patch.setattr(Learner, "save", lambda *args: real(*args) if args[1].name.endswith("0") else die())
        elif place == "scores":
            patch.setattr(module, "score_captions", die)
        else:
            patch.setattr(module, "loss_curves", die)
        with pytest.raises(KeyboardInterrupt):
            train(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    train(folder, tmp_path / "out")

    for name in ("model.safetensors", "scores.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_training_ends_where_the_held_out_loss_stops_falling_with_the_best_epoch(folder: Path, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=30, patience=2, learning_rate=0.3, warmup_steps=0)
    scores = train(folder, tmp_path / "out", config)

    losses = [epoch["held_out_loss"] for epoch in scores["history"]]
    assert len(losses) == scores["epoch"] + 3 < 30
    assert losses[scores["epoch"]] == min(losses)


def test_two_ranks_go_on_with_what_one_began_and_learn_what_one_learns(
    folder: Path, tmp_path: Path, start_ranks: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"  # without dropout, which is drawn for each rank
    shutil.copytree(folder / "base", base)
    config = json.loads((base / "config.json").read_text()) | {"dropout_rate": 0.0}
    (base / "config.json").write_text(json.dumps(config))
    quick = replace(QUICK, epochs=2, learning_rate=1e-3)
    alone = finetune(folder / "pairs.jsonl", str(base), tmp_path / "one", quick, ALONE)
    real = Learner.save
    monkeypatch.setattr(Learner, "save", lambda *args: real(*args) if args[1].name.endswith("0") else die())
    with pytest.raises(KeyboardInterrupt):
        finetune(folder / "pairs.jsonl", str(base), tmp_path / "two", quick, ALONE)
    flags = ["--held-out", "0.25", "--epochs", "2", "--batch-size", "8", "--micro-batch-size", "3", "--device", "cpu"]
    flags += ["--learning-rate", "1e-3", "--warmup-steps", "2", "--max-target-tokens", "24", "--model", str(base)]
    argv = ["curate", "finetune", str(folder / "pairs.jsonl"), "--out", str(tmp_path / "two"), *flags]
    ended = [
        rank.ended()
        for rank in start_ranks(argv, before="import cacophony.engine.curation.finetune as f; f.loss_curves = print")
    ]
    assert alone is not None
    assert [code for code, _ in ended] == [0, 0], ended

    together = json.loads((tmp_path / "two" / "scores.json").read_text())
    for one, two in zip(alone["history"], together["history"], strict=True):
        # Sums of float32 in another order, over a dozen updates.
        assert two == pytest.approx(one, rel=1e-4)
    states = [
        Cleaner(path, torch.device("cpu"), "float32").model.state_dict()
        for path in (base, tmp_path / "one", tmp_path / "two")
    ]
    start, one, two = (torch.cat([state[name].flatten() for name in states[0]]) for state in states)
    assert float((two - one).norm() / (one - start).norm()) < 0.02
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("one", "two")]
    assert sizes[0] == sizes[1]  # what is tied is stored once
    assert '"T5ForConditionalGeneration"' in (tmp_path / "two" / "config.json").read_text()


def test_held_out_texts_are_never_learnt_from_and_stay_held_out(folder: Path) -> None:
    path = folder / "pairs.jsonl"
    split = split_pairs(path, held_out=0.25, seed=0, flagged=False)
    with_flagged = split_pairs(path, held_out=0.25, seed=0, flagged=True)

    assert not {pair.text for pair in split.train} & {pair.text for pair in split.held_out}
    assert set(split.held_out) <= set(with_flagged.held_out)
    assert len(with_flagged.train) + len(with_flagged.held_out) == 41
    assert {p for p in read_pairs(path) if p.outcome == "caption" and not p.flags} == {*split.train, *split.held_out}


def test_scores_of_captions_that_are_right_copied_and_half_right() -> None:
    inputs = ["a dog barks on a Zoom H4n", "rain falls"]
    wanted = ["a dog barks", "rain falls"]

    right, copied = score_captions(inputs, wanted, wanted), score_captions(inputs, wanted, inputs)
    half = score_captions(inputs[1:], ["rain falls on tin roofs in town"], ["rain falls"])

    assert [right[name] for name in ("rouge1", "rouge2", "rougeL", "length_ratio", "copied")] == [1, 1, 1, 1, 0.5]
    assert right["residue"] == {"device": {"captions": 0.0, "wanted": 0.0, "inputs": 0.5}}
    assert copied["copied"] == 1
    assert copied["length_ratio"] == 9 / 5
    assert copied["residue"]["device"]["captions"] == 0.5
    assert half["rouge1"] == pytest.approx(2 * 1.0 * (2 / 7) / (1.0 + 2 / 7))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "{tmp}/nothing"], "no encoder-decoder"),
        (["--model", "{tmp}/pickled"], "safetensors"),
        (["--held-out", "1e-9"], "0 held out"),
        (["--learning-rate", "0"], "learning-rate is 0.0"),
        (["--out", "{tmp}"], "already there and not empty"),
        (["--out", "{folder}/whole"], "result of another call"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(
    folder: Path, whole: Path, tmp_path: Path, flags: list[str], message: str, refused: Callable[[list[str]], str]
) -> None:
    shutil.copytree(folder / "base", tmp_path / "pickled")
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    words = [flag.format(tmp=tmp_path, folder=folder) for flag in flags]
    argv = ["curate", "finetune", str(folder / "pairs.jsonl"), "--out", str(tmp_path / "out"), "--device", "cpu"]

    assert message in refused([*argv, "--model", str(folder / "base"), *words])
    assert not (tmp_path / "out").exists()


def test_the_command_finds_its_result_done(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["curate", "finetune", str(folder / "pairs.jsonl"), "--out", str(whole), "--model", str(folder / "base")]
    flags = ["--held-out", "0.25", "--epochs", "3", "--batch-size", "8", "--micro-batch-size", "3", "--device", "cpu"]
    flags += ["--learning-rate", "5e-3", "--warmup-steps", "2", "--max-target-tokens", "24"]

    assert main([*argv, *flags]) == 0
    assert "held-out pairs: rouge1" in capsys.readouterr().out
