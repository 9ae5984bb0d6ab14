import shutil
from pathlib import Path

import numpy as np
import pytest
from cacophony.engine.evaluate.store import Store, checkpoint_digest
from cacophony.errors import InputError


def never() -> np.ndarray:
    raise AssertionError("computed again")


def test_an_array_comes_back_with_the_same_bits(tmp_path: Path):
    store, values = Store(tmp_path / "kept", "c"), np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for compute in (lambda: values, never):
        np.testing.assert_array_equal(store.array("audio", ["a", "b"], compute), values)
    assert store.has("audio", ["a", "b"], ".safetensors")
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".safetensors"]


def test_texts_come_back_whatever_they_hold(tmp_path: Path):
    texts = ["a dog", "", "ü\n\u2028 \"'"]
    assert Store(tmp_path, "c").texts("captions", ["a"], lambda: texts) == texts
    assert Store(tmp_path, "c").texts("captions", ["a"], list) == texts


def test_all_that_it_was_made_from_tells_results_apart(tmp_path: Path):
    Store(tmp_path, "c").texts("captions", ["a", "b"], lambda: ["first"])
    for checkpoint, kind, made_from in (("d", "captions", "ab"), ("c", "other", "ab"), ("c", "captions", ["ab"])):
        assert Store(tmp_path, checkpoint).texts(kind, list(made_from), lambda: ["new"]) == ["new"]


def test_without_a_directory_nothing_is_kept():
    assert Store().texts("captions", ["a"], lambda: ["one"]) == ["one"]
    assert Store().texts("captions", ["a"], lambda: ["two"]) == ["two"]
    assert not Store().has("captions", ["a"], ".json")


def test_a_damaged_file_is_named(tmp_path: Path):
    store = Store(tmp_path, "c")
    store.array("audio", ["a"], lambda: np.ones((2, 2), np.float32))
    store.texts("captions", ["a"], lambda: ["one"])
    for path in list(tmp_path.iterdir()):
        path.write_text('{"texts": 3}')
    with pytest.raises(InputError, match=r"audio-.*safetensors"):
        store.array("audio", ["a"], never)
    with pytest.raises(InputError, match=r"captions-.*delete it"):
        store.texts("captions", ["a"], list)


def test_the_digest_is_that_of_weights_sizes_and_tokenizer(model_directory: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(model_directory, copy)
    digest = checkpoint_digest(copy)
    assert digest == checkpoint_digest(model_directory)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:-1] + b"\0")
        assert checkpoint_digest(copy) != digest
        (copy / name).write_bytes(data)
    (copy / "log.jsonl").write_text("a line")
    assert checkpoint_digest(copy) == digest
