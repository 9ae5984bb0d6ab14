"""The gap over checkpoints: the numbers are the checkpoints' own, the pictures are there, nothing is silent."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cacophony.__main__ import main
from cacophony.data.shards import Shards
from cacophony.engine.checkpoint import checkpoints
from cacophony.engine.evaluate.datasets.layouts import read_captioned
from cacophony.engine.evaluate.gap import evaluate_gap
from cacophony.engine.inference import load
from cacophony.errors import InputError
from cacophony.models.tensor_shapes import load_into
from cacophony.models.weights import load_tensors

Refused = Callable[[list[str]], str]


def test_every_checkpoint_has_its_own_gap(contrastive_run: Path, held_out_shards: Path):
    found = list(evaluate_gap(contrastive_run, read_captioned(held_out_shards), device="cpu"))
    assert [step for step, _ in found] == [4, 6]
    with Shards.open(held_out_shards) as shards:
        waves = [shards.read(i) for i in range(len(shards))]
        captions = [caption for i in range(len(shards)) for caption in shards.clip(i).captions]
    for (_, gap), checkpoint in zip(found, checkpoints(contrastive_run), strict=True):
        model = load(contrastive_run, device="cpu")
        load_into(model.model, load_tensors(checkpoint / "model.safetensors"), checkpoint)
        difference = model.embed_audio(waves).mean(axis=0) - model.embed_text(captions).mean(axis=0)
        assert gap.gap == pytest.approx(float(np.sqrt((difference**2).sum())), abs=1e-5)
    assert found[0][1].gap != found[1][1].gap


def test_a_clip_is_drawn_with_its_first_caption(contrastive_run: Path, shards: Path):
    corpus = read_captioned(shards)
    _, gap = next(evaluate_gap(contrastive_run, corpus, device="cpu"))
    assert len(gap.text_embeddings) == sum(map(len, corpus.captions))
    model = load(contrastive_run, device="cpu")
    first = [texts[0] for texts in corpus.captions]
    load_into(model.model, load_tensors(checkpoints(contrastive_run)[0] / "model.safetensors"), contrastive_run)
    np.testing.assert_allclose(gap.paired_text, model.embed_text(first), atol=1e-5)
    assert gap.paired_text.shape == gap.audio_embeddings.shape == (40, 16)


def test_the_command_writes_json_and_pictures(
    contrastive_run: Path, held_out_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "gap"
    words = ["evaluate", "gap", str(contrastive_run), str(contrastive_run), "--data", str(held_out_shards)]
    assert main([*words, "--out", str(out), "--projection", "pca", "--device", "cpu"]) == 0
    record = json.loads((out / "gap.json").read_text())
    assert record["projection"] == "pca"
    assert len(record["runs"]) == 2
    first = record["runs"][0]
    assert (first["run"], first["clips"], first["captions"]) == (str(contrastive_run), 8, 8)
    assert [point["step"] for point in first["checkpoints"]] == [4, 6]
    for picture in ("gap.png", *(run["map"] for run in record["runs"])):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"step 6, gap {first['checkpoints'][1]['gap']:.4f}" in printed
    assert "a map (pca)" in printed


def test_without_umap_learn_nothing_else_is_drawn_in_its_place(
    contrastive_run: Path, held_out_shards: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    out = tmp_path / "gap"
    line = refused(["evaluate", "gap", str(contrastive_run), "--data", str(held_out_shards), "--out", str(out)])
    assert "umap needs umap-learn" in line
    assert "pip install 'cacophony-engine[evaluate]'" in line
    assert not out.exists()


def test_what_has_no_gap_is_refused(
    contrastive_run: Path, mae_run: Path, mute_shards: Path, shards: Path, tmp_path: Path
):
    with pytest.raises(InputError, match="stage-1 model; expected stage 2"):
        next(evaluate_gap(mae_run, read_captioned(shards)))
    with pytest.raises(InputError, match="no captions; pack with --captions"):
        read_captioned(mute_shards)
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((contrastive_run / file).read_bytes())
    with pytest.raises(InputError, match="holds no checkpoints"):
        next(evaluate_gap(tmp_path, read_captioned(shards)))
