"""A run whose captions have no weight: what it allocates, saves and logs, and what may start from it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cacophony.__main__ import main
from cacophony.data.synthetic import Corpus
from cacophony.engine.build import build_model
from cacophony.engine.config import ContrastiveRunConfig
from cacophony.engine.evaluate.datasets.layouts import read_captioned
from cacophony.engine.evaluate.everything import evaluate_all
from cacophony.engine.evaluate.tasks import TASKS
from cacophony.engine.gpus import gpu_named
from cacophony.engine.inference import load
from cacophony.engine.plan import Machine, Planner
from cacophony.engine.step_memory import ClipSize
from cacophony.engine.trainer import train
from cacophony.errors import InputError
from cacophony.models.audio_text import AudioText
from cacophony.models.config import AudioTextConfig
from cacophony.models.weights import load_tensors

Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def config(contrastive_config: ContrastiveRunConfig) -> ContrastiveRunConfig:
    data = replace(contrastive_config.data, tokenizer="auto")  # that of the run it starts from
    return replace(contrastive_config, data=data, objective=replace(contrastive_config.objective, caption_weight=0.0))


@pytest.fixture(scope="module")
def run(config: ContrastiveRunConfig, contrastive_run: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory):
    """Started from a run that captions, whose decoder it leaves behind."""
    out = tmp_path_factory.mktemp("quiet") / "run"
    train("contrastive", config, shards, out, init=contrastive_run)
    return out


def decoder_size(config: ContrastiveRunConfig) -> int:
    return sum(parameter.numel() for parameter in AudioText(config.model).caption_decoder.parameters())


def test_the_decoder_is_neither_allocated_nor_planned(
    config: ContrastiveRunConfig, contrastive_config: ContrastiveRunConfig
):
    machine = Machine(gpu=gpu_named("h100-80gb"), gpus=1, clip=ClipSize(64, 20))
    plans = [Planner(one, machine).smallest() for one in (contrastive_config, config)]
    assert plans[0].parameters - plans[1].parameters == decoder_size(config)
    assert plans[0].bytes - plans[1].bytes > 16 * decoder_size(config)  # float32: weights, gradient, two moments
    assert plans[0].flops.model > plans[1].flops.model
    assert not any(name.startswith("caption_decoder") for name in build_model(config).state_dict())


def test_the_checkpoint_holds_the_towers_alone(run: Path, config: ContrastiveRunConfig, contrastive_run: Path):
    sizes = {path: load_tensors(path / "model.safetensors").keys() for path in (run, contrastive_run)}
    gone = sizes[contrastive_run] - sizes[run]
    assert gone
    assert all(name.startswith("caption_decoder.") for name in gone)
    assert sizes[run] < sizes[contrastive_run]
    assert json.loads((run / "config.json").read_text())["network"]["caption_layers"] == 0
    assert json.loads((run / "run.json").read_text())["config"]["model"]["caption_layers"] == 1
    origins = json.loads((run / "initialisation.json").read_text())["origins"]
    assert [origin["source"] for origin in origins] == [str(contrastive_run)]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all("captioning" not in line and line["loss"] == line["contrastive"] for line in lines)


def test_it_goes_on_where_it_was(run: Path, shards: Path, tmp_path: Path):
    out = shutil.copytree(run, tmp_path / "run")
    newest = "checkpoints/step-00000006"
    shutil.rmtree(out / newest)
    assert main(["train", "contrastive", "--data", str(shards), "--out", str(out), "--resume"]) == 0
    file = f"{newest}/model.safetensors"
    assert (out / file).read_bytes() == (run / file).read_bytes()


def test_it_embeds_and_says_that_it_cannot_caption(
    run: Path, held_out_shards: Path, tmp_path: Path, refused: Callable[[list[str]], str], corpus: Corpus
):
    model = load(run, device="cpu")
    clips = read_captioned(held_out_shards).clips
    assert model.embed_audio([clip.read() for clip in clips]).shape == (8, 16)
    with pytest.raises(InputError, match=r"no caption decoder.*trained with objective\.caption_weight 0"):
        model.caption([clips[0].read()])
    assert "no caption decoder" in refused(["caption", str(run), str(next(corpus.test_dir.glob("*.wav")))])
    assert "no caption decoder" in refused(["convert", str(run), "--out", str(tmp_path / "out"), "--to-authors"])
    wanted = [task for task in TASKS if task.name in ("retrieval", "caption")]
    found = evaluate_all(model, run, held_out_shards, tmp_path / "evaluation", progress=False, tasks=wanted)
    assert "retrieval: shards" in found.outcomes
    assert list(found.not_run) == ["caption: shards"]


def test_a_run_that_captions_needs_a_decoder(contrastive_config: ContrastiveRunConfig):
    with pytest.raises(InputError, match=r"model\.caption_layers is 0, but objective\.caption_weight is 1"):
        replace(contrastive_config, model=replace(contrastive_config.model, caption_layers=0))
    with pytest.raises(InputError, match="caption_layers is -1"):
        AudioTextConfig(caption_layers=-1)


def test_a_run_that_captions_does_not_start_from_one_that_does_not(
    command: Command, refused: Callable[[list[str]], str], run: Path, tmp_path: Path
):
    line = refused(command("contrastive", tmp_path / "run", "--init", str(run), "--data.tokenizer", "auto"))
    assert "tensor caption_decoder." in line
    assert "is missing" in line
