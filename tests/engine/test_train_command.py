"""`cacophony train`: wrong input is one line that names it, exit code 2, and nothing is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cacophony.__main__ import main
from cacophony.data.pack import pack
from cacophony.data.shards import Shards
from cacophony.data.synthetic import Corpus
from cacophony.engine.presets import demo_stage1
from cacophony.models.config_io import to_dict
from cacophony.models.model_directory import read_model
from safetensors.torch import load_file, save_file

Refused = Callable[[list[str]], str]
Command = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--update.leaning-rate", "1"], ["leaning-rate", "did you mean --update.learning-rate"]),
        (["--batchsize", "1"], ["batchsize", "did you mean --batch-size"]),
        (["--batch-size", "many"], ["batch-size", "many", "int"]),
        (["--batch-size", "1.5"], ["batch-size", "1.5", "int"]),
        (["--update.rho", "big"], ["update.rho", "big", "float"]),
        (["--update.rho", "-0.1"], ["rho is -0.1", "at least 0"]),
        (["--objective.mask-ratio", "1"], ["mask_ratio is 1.0"]),
        (["--precision", "fp16"], ["precision", "fp16", "fp32", "bf16"]),
        (["--update.warmup-steps", "6"], ["warmup_steps (6)", "steps (6)"]),
        (["--model.encoder.heads", "3"], ["heads 3"]),
        (["--batch-size", "41"], ["batch_size is 41", "40 clips"]),
        (["--device", "tpu"], ["device 'tpu'"]),
        (["--config", "absent.toml"], ["absent.toml"]),
        (["--data", "absent"], ["absent", "cacophony pack"]),
        (["--init", "absent"], ["absent", "model directory"]),
        (["--update.rho"], ["rho"]),
        (["--data.sources", ".", "sea"], ["no clip is from source sea", "expected some of . (40)"]),
    ],
)
def test_a_wrong_flag_of_train_is_named_and_nothing_is_written(
    command: Command, refused: Refused, tmp_path: Path, flags: list[str], expected: list[str]
):
    message = refused(command("mae", tmp_path / "out", *flags))
    for part in expected:
        assert part in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("bach_size = 3", "field bach_size is unknown; did you mean batch_size?"),
        ("[update]\nroh = 3", "field update.roh is unknown; did you mean update.rho?"),
        ('steps = "ten"', "steps is 'ten', expected int"),
        ("update.rho = -1", "rho is -1.0"),
        ("steps =", "TOML"),
    ],
)
def test_a_wrong_settings_file_is_named(
    command: Command, refused: Refused, tmp_path: Path, content: str, expected: str
):
    (tmp_path / "wrong.toml").write_text(content)
    message = refused(command("mae", tmp_path / "out", "--config", str(tmp_path / "wrong.toml")))
    assert "wrong.toml" in message
    assert expected in message
    assert not (tmp_path / "out").exists()


def test_flags_go_over_the_file_and_the_file_over_the_preset(shards: Path, tmp_path: Path):
    (tmp_path / "few.toml").write_text("batch_size = 4\nsteps = 99\nupdate.warmup_steps = 1")
    argv = ["train", "mae", "--preset", "demo", "--config", str(tmp_path / "few.toml"), "--steps", "2"]
    assert main([*argv, "--data", str(shards), "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    preset = to_dict(demo_stage1())
    preset |= {"batch_size": 4, "steps": 2, "update": preset["update"] | {"warmup_steps": 1}}
    assert config == preset


def test_sources_are_named_on_the_command_line(command: Command, refused: Refused, corpus: Corpus, tmp_path: Path):
    """20 of the 40 clips lie in each of two folders."""
    audio = tmp_path / "audio"
    for number, file in enumerate(sorted(corpus.train_dir.iterdir())):
        (audio / ("sea", "land")[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, audio / ("sea", "land")[number % 2])
    pack(audio, tmp_path / "shards", progress=False)
    words = command("mae", tmp_path / "run", "--data", str(tmp_path / "shards"), "--batch-size", "20")
    assert main([*words, "--steps", "3", "--data.sources", "sea"]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["data"]["sources"] == ["sea"]
    assert record["data_fingerprint"] == Shards.open(tmp_path / "shards", ["sea"]).fingerprint
    again = [*words, "--steps", "4", "--resume"]
    assert "data.sources = ('sea',) (now ('land',))" in refused([*again, "--data.sources", "land"])
    line = refused([*again, "--allow-changed", "--data.sources", "land"])
    assert "is not the data that" in line
    assert "sources sea" in line
    assert "batch_size is 21" in refused([*words, "--batch-size", "21", "--data.sources", "sea", "--out", f"{audio}2"])


def test_stage_1_does_not_start_from_stage_2(command: Command, refused: Refused, contrastive_run: Path, tmp_path: Path):
    message = refused(command("mae", tmp_path / "out", "--init", str(contrastive_run)))
    assert str(contrastive_run) in message
    assert "stage-1 model" in message
    assert not (tmp_path / "out").exists()


def truncate(file: Path):
    file.write_bytes(file.read_bytes()[:-10])


def reshape(file: Path):
    save_file(load_file(file) | {"encoder.patch.weight": torch.zeros(3, 5)}, file)


def drop(file: Path):
    tensors = load_file(file)
    del tensors["encoder.norm.bias"]
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (truncate, "truncated"),
        (reshape, "patch.weight has shape (3, 5), the model expects (16, 256)"),
        (drop, "norm.bias is missing"),
        (Path.unlink, "holds no model"),
    ],
)
@pytest.mark.parametrize("stage", ["mae", "contrastive"])
def test_a_damaged_stage_1_checkpoint_is_named(
    command: Command,
    refused: Refused,
    mae_run: Path,
    tmp_path: Path,
    stage: str,
    change: Callable[[Path], None],
    expected: str,
):
    init = tmp_path / "damaged"
    shutil.copytree(mae_run, init)
    change(init / "model.safetensors")
    message = refused(command(stage, tmp_path / "out", "--init", str(init)))
    assert str(init) in message
    assert expected in message
    assert not (tmp_path / "out").exists()


def test_a_stage_1_run_of_another_size_is_refused_with_the_tensor(command: Command, refused: Refused, tmp_path: Path):
    flags = ["--model.audio.mlp-width", "64"]
    message = refused(command("contrastive", tmp_path / "out", *flags))
    assert "blocks.0.mlp_in.weight" in message
    assert "(32, 16)" in message
    assert "(64, 16)" in message


def test_a_place_in_use_is_refused_without_resume(command: Command, refused: Refused, mae_run: Path):
    message = refused(command("mae", mae_run))
    assert "not empty" in message
    assert "--resume" in message


def test_a_changed_field_is_named_on_resume(command: Command, refused: Refused, mae_run: Path):
    message = refused(command("mae", mae_run, "--resume", "--update.learning-rate", "0.5"))
    assert "update.learning_rate" in message
    assert "0.5" in message
    assert "is a mae run" in refused(command("contrastive", mae_run, "--resume"))


def test_another_start_is_named_on_resume(command: Command, refused: Refused, contrastive_run: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(contrastive_run, out)
    message = refused(command("contrastive", out, "--resume", "--init", str(tmp_path / "elsewhere")))
    assert "init" in message


def test_stage_2_needs_captions(command: Command, refused: Refused, mute_shards: Path, tmp_path: Path):
    message = refused(command("contrastive", tmp_path / "out", "--data", str(mute_shards)))
    assert "no captions" in message
    assert "--captions" in message
    assert list(tmp_path.iterdir()) == []


def test_a_gradient_that_stays_infinite_ends_the_run_with_1_and_names_its_clips(
    command: Command, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--update.learning-rate", "1e30", "--steps", "9", "--update.max-skipped-in-a-row", "3"]
    assert main(command("mae", tmp_path / "run", *flags)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "not finite for 3 steps in a row" in last
    assert "checkpoint" in last
    file = tmp_path / "run" / "skipped_batches.json"
    assert str(file) in last
    saved = json.loads(file.read_text())
    steps = [step["step"] for step in saved["steps"]]
    assert saved["skipped_in_a_row"] == 3
    assert steps == [steps[0], steps[0] + 1, steps[0] + 2]
    with Shards.open(shards) as opened:
        for step in saved["steps"]:
            assert len(step["keys"]) == 8
            assert step["keys"] == [opened.clip(i).key for i in step["sample_index"]]


def test_a_bfloat16_run_saves_float32_weights_and_continues_identically(command: Command, tmp_path: Path):
    """What is saved is the master, of which bfloat16 would keep 8 bits; what is loaded anew knows nothing of it."""
    flags = ["--precision", "bf16", "--steps", "4"]
    assert main(command("mae", tmp_path / "whole", *flags)) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step-00000004")
    assert main(command("mae", tmp_path / "part", *flags, "--resume")) == 0
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        whole, part = (tmp_path / run / "checkpoints" / "step-00000004" / name for run in ("whole", "part"))
        assert whole.read_bytes() == part.read_bytes()
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    weight = weights["encoder.blocks.0.mlp_in.weight"]
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert not torch.equal(weight, weight.bfloat16().float())
    assert all(p.dtype == torch.float32 for p in read_model(tmp_path / "whole").parameters())


def test_a_run_may_be_continued_with_the_rival_update(command: Command, tmp_path: Path, mae_run: Path):
    """It ends within float32 rounding of the run that was not: 1e-5 of weights that moved by 1e-3 a step."""
    out = tmp_path / "run"
    shutil.copytree(mae_run, out)
    shutil.rmtree(out / "checkpoints" / "step-00000006")
    assert main(command("mae", out, "--resume", "--update.implementation", "per_tensor")) == 0
    found, expected = (load_file(run / "model.safetensors") for run in (out, mae_run))
    for name, tensor in expected.items():
        if not name.endswith("qkv.bias"):  # a key's bias has no gradient but rounding, which Adam blows up
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
