"""`cacophony convert`: the authors' checkpoints become models that load, and come back byte for byte."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cacophony
import numpy as np
import pytest
import torch
from cacophony.__main__ import main
from cacophony.data.tokens import CaptionTokenizer
from cacophony.engine import convert_command
from cacophony.models.authors_tree import authors_shapes
from cacophony.models.config import AudioMAEConfig, AudioTextConfig, NetworkConfig, TextConfig, TransformerConfig
from cacophony.models.flax_file import read_tree, write_tree
from cacophony.models.model_directory import MODEL_FILE, read_config, read_model
from cacophony.models.weights import load_tensors, save_tensors

GOLDENS = Path(__file__).parents[1] / "goldens"
CACOPHONY = GOLDENS / "Cacophony_small.ckpt"
HEADS = ["--text-heads", "4", "--pool-heads", "4"]

MAE = AudioMAEConfig(
    encoder=TransformerConfig(width=12, layers=3, heads=2, mlp_width=20),
    decoder=TransformerConfig(width=16, layers=1, heads=4, mlp_width=24),
)
AUDIO_TEXT = AudioTextConfig(
    audio=TransformerConfig(width=16, layers=11, heads=2, mlp_width=20),
    text=TextConfig(width=24, layers=3, heads=12, mlp_width=14, vocab_size=400, max_positions=40),
    caption_layers=2,
    pool_heads=8,
    projection_width=10,
)

Refused = Callable[[list[str]], str]


def write_authors(path: Path, config: NetworkConfig, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    write_tree(
        path, {name: np.asarray(rng.normal(0, 0.1, s), np.float32) for name, s in authors_shapes(config).items()}
    )
    return path


def convert(source: Path, out: Path, *flags: str) -> Path:
    assert main(["convert", str(source), "--out", str(out), *flags]) == 0
    return out


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    CaptionTokenizer.train(["rain on a roof", "a dog barks in the rain"], 300).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_authors_model_loads_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = convert(CACOPHONY, tmp_path / "new" / "model", *HEADS)
    said = capsys.readouterr()
    assert f"{out}: Cacophony, 0.35 M parameters" in said.out
    assert "2 layers of 64, 4 heads, feed-forward 128; 500 tokens, 130 positions" in said.out
    assert "no tokenizer: text goes in and captions come out as token ids" in said.out
    assert "as in the paper" not in said.out
    assert said.err == ""
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert list((tmp_path / "new").iterdir()) == [out]

    model = cacophony.load(out, device="cpu")
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    for embedding in (model.embed_audio([wave]), model.embed_text([[0, 5, 6, 2]])):
        assert embedding.shape == (1, 64)
        np.testing.assert_allclose(np.linalg.norm(embedding), 1.0, atol=1e-5)


def test_the_authors_autoencoder_and_orbax_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "orbax").mkdir()
    shutil.copy(GOLDENS / "AudioMAE_small_orbax_aggregate.ckpt", tmp_path / "orbax" / "checkpoint")
    out = convert(tmp_path / "orbax", tmp_path / "model")
    assert "AudioMAE, 0.17 M parameters" in capsys.readouterr().out
    tree, model = read_tree(tmp_path / "orbax"), read_model(out)
    found = model.state_dict()["decoder.embed.weight"].numpy()
    np.testing.assert_array_equal(found, tree["AudioDecoder_0/Dense_0/kernel"].T)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("config", [MAE, AUDIO_TEXT])
def test_other_sizes_come_back_byte_for_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: NetworkConfig, seed: int
):
    source = write_authors(tmp_path / "a.ckpt", config, seed)
    out = convert(source, tmp_path / "model")
    assert read_config(out) == config
    said = capsys.readouterr().out
    assert said.count("as in the paper, a checkpoint does not tell") == (
        2 if isinstance(config, AudioTextConfig) else 0
    )
    back = convert(out, tmp_path / "back.ckpt", "--to-authors")
    assert (capsys.readouterr().out.count("--text-heads 12 --pool-heads 8")) == isinstance(config, AudioTextConfig)
    tree = read_tree(source)
    assert {path: values.tobytes() for path, values in read_tree(back).items()} == {
        path: values.tobytes() for path, values in tree.items()
    }
    second = convert(convert(back, tmp_path / "again"), tmp_path / "second.ckpt", "--to-authors")
    assert second.read_bytes() == back.read_bytes()
    assert (tmp_path / "again" / MODEL_FILE).read_bytes() == (out / MODEL_FILE).read_bytes()


def test_a_tokenizer_comes_along(tmp_path: Path, tokenizer: Path):
    source = write_authors(tmp_path / "a.ckpt", AUDIO_TEXT, 0)
    out = convert(source, tmp_path / "model", "--tokenizer", str(tokenizer))
    model = cacophony.load(out, device="cpu")
    assert model.max_text_tokens == 40
    ids = CaptionTokenizer.load(tokenizer).encode(["rain on a dog"], 40)[0]
    np.testing.assert_array_equal(model.embed_text(["rain on a dog"]), model.embed_text([ids.tolist()]))
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 40


def test_a_run_goes_to_the_authors_format_and_back(contrastive_run: Path, tmp_path: Path):
    config = read_config(contrastive_run)
    assert isinstance(config, AudioTextConfig)
    heads = ["--text-heads", str(config.text.heads), "--pool-heads", str(config.pool_heads)]
    authors = convert(contrastive_run, tmp_path / "run.ckpt", "--to-authors")
    out = convert(authors, tmp_path / "model", *heads, "--tokenizer", str(contrastive_run))
    before, after = load_tensors(contrastive_run / MODEL_FILE), load_tensors(out / MODEL_FILE)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    wave = np.zeros(16_000, np.float32)
    ours, theirs = (cacophony.load(path, device="cpu") for path in (contrastive_run, out))
    assert ours.caption([wave], method="greedy") == theirs.caption([wave], method="greedy")


def test_half_precision_is_widened_on_the_way_back(tmp_path: Path):
    out = convert(write_authors(tmp_path / "a.ckpt", MAE, 0), tmp_path / "model")
    halves = {name: tensor.bfloat16() for name, tensor in load_tensors(out / MODEL_FILE).items()}
    save_tensors(halves, out / MODEL_FILE)
    tree = read_tree(convert(out, tmp_path / "half.ckpt", "--to-authors"))
    expected = halves["decoder.pixels.weight"].float().numpy().T
    np.testing.assert_array_equal(tree["AudioDecoder_0/Dense_1/kernel"], expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (pickle.dumps({"0": {"params": {}}}), "looks like a pickle"),
        (CACOPHONY.read_bytes()[:-20], "a.ckpt: leaf 0"),
        (CACOPHONY.read_bytes()[:700_000], "at byte"),
        (
            CACOPHONY.read_bytes().replace(b"float32", b"float64", 1),
            "leaf audio_attention_pool/Dense_0/bias of shape (128,)",
        ),
        (CACOPHONY.read_bytes().replace(b"\x91\xcc\x80\xa7", b"\x91\xcc\x81\xa7", 1), "needs 516 bytes, but has 512"),
        (CACOPHONY.read_bytes().replace(b"logit_scale", b"logit_scalx", 1), "leaf logit_scale: missing"),
        ((GOLDENS / "chunked_leaf_example.ckpt").read_bytes(), "AudioEncoderLayer_0/MultiHeadDotProductAttention_0"),
    ],
)
def test_a_wrong_checkpoint_is_named_and_nothing_is_written(
    refused: Refused, tmp_path: Path, content: bytes, expected: str
):
    source = tmp_path / "a.ckpt"
    source.write_bytes(content)
    message = refused(["convert", str(source), "--out", str(tmp_path / "new" / "model"), *HEADS])
    assert str(source) in message
    assert expected in message
    assert list(tmp_path.iterdir()) == [source]


def test_a_leaf_with_nan_or_of_another_shape_is_named(refused: Refused, tmp_path: Path):
    tree, name = read_tree(CACOPHONY), "text_proj/kernel"
    source, out = tmp_path / "a.ckpt", tmp_path / "model"
    for values, expected in (
        (np.full((64, 64), np.nan, np.float32), "holds NaN"),
        (np.zeros((63, 64), np.float32), "has shape (63, 64), expected (64, 64)"),
    ):
        write_tree(source, tree | {name: values})
        message = refused(["convert", str(source), "--out", str(out), *HEADS])
        assert f"{source}: leaf {name} {expected}" in message
        assert list(tmp_path.iterdir()) == [source]


def test_wrong_flags_are_named_and_nothing_is_written(refused: Refused, tmp_path: Path, tokenizer: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    mae = write_authors(tmp_path / "mae.ckpt", MAE, 0)
    model = convert(CACOPHONY, tmp_path / "model", *HEADS)
    small = write_authors(
        tmp_path / "small.ckpt",
        AudioTextConfig(
            audio=AUDIO_TEXT.audio,
            text=TextConfig(width=24, layers=1, heads=12, mlp_width=4, vocab_size=100, max_positions=8),
            pool_heads=8,
            projection_width=4,
        ),
        0,
    )
    before = sorted(tmp_path.rglob("*"))
    out = ["--out", str(tmp_path / "out")]
    for argv, expected in (
        ([str(CACOPHONY), "--out", str(tmp_path / "full"), *HEADS], "full: is not empty; choose another --out"),
        ([str(CACOPHONY), "--out", str(mae), *HEADS], "mae.ckpt: is not empty"),
        ([str(CACOPHONY), *out], "Cacophony_small.ckpt: the text width 64 is not an even multiple of 12 heads"),
        ([str(CACOPHONY), *out, "--text-heads", "0"], "--text-heads"),
        ([str(CACOPHONY), *out, "--text-heads", "4", "--pool-heads", "7"], "--pool-heads"),
        ([str(CACOPHONY), *out, *HEADS, "--tokenizer", str(tmp_path / "full")], "no tokenizer; expected"),
        ([str(small), *out, "--tokenizer", str(tokenizer)], "small.ckpt: has 100 word embeddings, fewer than the"),
        ([str(mae), *out, "--text-heads", "12"], "mae.ckpt: is an AudioMAE, without text"),
        ([str(mae), *out, "--tokenizer", str(tokenizer)], "is an AudioMAE, without text"),
        ([str(model), *out], "model: is a model directory already; --to-authors"),
        ([str(tmp_path / "absent"), *out], "absent: no such file; expected a flax checkpoint"),
        ([str(tmp_path / "full"), *out], "checkpoint: no such file"),
        ([str(model), *out, "--to-authors", *HEADS], "do not go with --to-authors"),
        ([str(model), "--out", str(mae), "--to-authors"], "mae.ckpt: exists already"),
        ([str(model), "--out", str(tmp_path / "absent" / "a"), "--to-authors"], "absent: no such directory"),
        ([str(mae), *out, "--to-authors"], "mae.ckpt: is not a model directory"),
    ):
        assert expected in refused(["convert", *argv]), argv
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_is_damaged_does_not_go_to_the_authors_format(refused: Refused, tmp_path: Path):
    model = convert(write_authors(tmp_path / "a.ckpt", MAE, 0), tmp_path / "model")
    tensors, name = load_tensors(model / MODEL_FILE), "encoder.norm.weight"
    for tensor, expected in (
        (torch.full((12,), torch.nan), "holds NaN"),
        (torch.ones(11), "has shape (11,)"),
        (torch.ones(12, dtype=torch.int32), "has dtype torch.int32"),
    ):
        save_tensors(tensors | {name: tensor}, model / MODEL_FILE)
        message = refused(["convert", str(model), "--out", str(tmp_path / "back.ckpt"), "--to-authors"])
        assert f"{model / MODEL_FILE}: tensor {name} {expected}" in message
    assert not (tmp_path / "back.ckpt").exists()


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(directory: Path, *_: object) -> None:
        (directory / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_command, "write_model", interrupted)
    assert main(["convert", str(CACOPHONY), "--out", str(tmp_path / "model"), *HEADS]) == 130
    assert list(tmp_path.iterdir()) == []
    assert "interrupted" in capsys.readouterr().err


def test_an_empty_directory_may_be_written_into(tmp_path: Path):
    assert sorted(path.name for path in convert(CACOPHONY, tmp_path, *HEADS).iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
