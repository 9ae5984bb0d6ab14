"""Checkpoints of flax: read as flax means them, written byte for byte as flax writes, refused in one line otherwise."""

import pickle
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from cacophony.errors import InputError
from cacophony.models import flax_file
from cacophony.models.flax_file import read_tree, write_tree
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

GOLDENS = Path(__file__).parents[1] / "goldens"
RNG = np.random.default_rng(0)
TREE = {
    "AudioEncoder_0/Dense_0/kernel": RNG.standard_normal((3, 4, 2), np.float32),
    "AudioEncoder_0/Dense_0/bias": RNG.standard_normal(8, np.float32),
    "logit_scale": np.array(2.5, np.float32),
}


def array(values: np.ndarray, *, dtype: str | None = None, shape: Any = None, code: int = 1) -> msgpack.ExtType:
    """A leaf as flax packs it; `dtype` and `shape` are what it claims to be."""
    fields = (values.shape if shape is None else shape, dtype or values.dtype.name, values.tobytes())
    return msgpack.ExtType(code, msgpack.packb(fields) or b"")


def nested(tree: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for path, leaf in tree.items():
        *modules, name = path.split("/")
        branch = result
        for module in modules:
            branch = branch.setdefault(module, {})
        branch[name] = array(leaf) if isinstance(leaf, np.ndarray) else leaf
    return result


def packed(content: Any) -> bytes:
    return msgpack.packb(content) or b""


def legacy(tree: Mapping[str, Any], opt_state: Any = None) -> bytes:
    return packed({"0": {"step": 0, "params": nested(tree), "opt_state": opt_state or {}}, "1": {"epoch": 0}})


class File:
    """A checkpoint file whose content is replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, content: bytes) -> dict[str, np.ndarray]:
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(content)
        return read_tree(self.path)

    def refused(self, content: bytes) -> str:
        with pytest.raises(InputError) as caught:
            self.read(content)
        message = str(caught.value)
        assert message.startswith(f"{self.path}: ")
        assert len(message.splitlines()) == 1
        return message


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    return File(tmp_path_factory.mktemp("flax") / "a.ckpt")


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values, strict=True)


@pytest.mark.parametrize(
    ("name", "leaves", "values"),
    [
        ("Cacophony_small", 99, 349_557),
        ("AudioMAE_small_orbax_aggregate", 77, 172_480),
        ("chunked_leaf_example", 6, 37_248),
    ],
)
def test_files_written_by_flax_are_read_and_written_back_byte_for_byte(
    name: str, leaves: int, values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, copy, second = GOLDENS / f"{name}.ckpt", tmp_path / "copy.ckpt", tmp_path / "second.ckpt"
    tree = read_tree(source)
    assert (len(tree), sum(array.size for array in tree.values())) == (leaves, values)

    if name == "chunked_leaf_example":
        monkeypatch.setattr(flax_file, "_CHUNK_BYTES", 2**15)
    write_tree(copy, tree)
    written, tail = copy.read_bytes(), b"\xa9opt_state\x80\xa11\x81\xa5epoch\x00"
    params = written[written.index(b"\xa6params") : -len(tail)]
    assert params in source.read_bytes()
    assert written == b"\x82\xa10\x83\xa4step\x00" + params + tail

    write_tree(second, read_tree(copy))
    assert second.read_bytes() == written


def test_every_form_of_file_gives_the_same_tree_and_the_rest_is_stepped_over(file: File, tmp_path: Path):
    params = nested(TREE)
    moments = {"0": {"count": array(np.array(3, np.int32)), "mu": params, "nu": params}, "1": {}, "2": None}
    state = {"step": 7, "params": params, "opt_state": moments}
    for content in (
        {"0": state, "1": {"epoch": 3}},
        {"1": {"epoch": 3}, "0": state},
        [{"opt_state": None, "params": params}, {"epoch": 3}],
        {"params": params},
        state,
    ):
        assert_same(file.read(packed(content)), TREE)
    (tmp_path / "checkpoint").write_bytes(packed([state]))
    assert_same(read_tree(tmp_path), TREE)


def test_reading_costs_no_memory_beside_the_mapped_file(tmp_path: Path):
    write_tree(tmp_path / "a.ckpt", {"large": np.ones((512, 1024), np.float32)})
    tracemalloc.start()
    try:
        tree = read_tree(tmp_path / "a.ckpt")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert tree["large"].sum() == 512 * 1024


@given(st.sampled_from(["float16", "bfloat16", "float64", "float32"]), st.lists(st.integers(1, 4), max_size=4))
def test_every_floating_point_type_becomes_float32(file: File, dtype: str, shape: list[int]):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    raw = values.reshape(-1).view(torch.uint8).numpy()
    for code in (1, 3):
        tree = file.read(legacy({"a/kernel": array(raw, dtype=dtype, shape=shape, code=code)}))
        assert_same(tree, {"a/kernel": values.float().numpy()})


def test_a_number_beyond_float32_becomes_infinity(file: File):
    assert file.read(legacy({"a": np.array([1e300, -1.0])}))["a"].tolist() == [np.inf, -1.0]


@given(st.lists(st.integers(1, 6), max_size=3) | st.sampled_from([[59], [60], [61], [63], [64], [16_380], [16_384]]))
def test_written_files_are_those_of_msgpack(file: File, shape: list[int]):
    tree = {
        "a/bias": np.zeros(shape, np.float32),
        "a/kernel": np.ones(shape[::-1], np.float32).T,
        "scale": TREE["logit_scale"],
    }
    write_tree(file.path, tree)
    assert file.path.read_bytes() == legacy(tree)
    assert_same(read_tree(file.path), tree)


def test_a_write_that_is_cut_short_leaves_nothing(tmp_path: Path):
    def interrupt(done: int, total: int) -> None:
        assert total == 4 * (24 + 8 + 1)
        if done > 4 * 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tree(tmp_path / "a.ckpt", TREE, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_is_none_is_not_written(tmp_path: Path):
    one = np.ones(1, np.float32)
    for tree, expected in (
        ({"a": np.ones(1)}, "leaf a has dtype float64, expected float32"),
        ({"a": one, "a/b": one}, "leaf a/b lies below another leaf"),
        ({"a/b": one, "a": one}, "leaf a is also a branch"),
    ):
        with pytest.raises(ValueError, match=expected):
            write_tree(tmp_path / "a.ckpt", tree)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        (array(np.ones(2, np.float32), dtype="object"), "dtype 'object', expected one of float32"),
        (array(np.ones(2, np.float32), dtype="O"), "dtype 'O'"),
        (array(np.ones(2, np.int32)), "dtype 'int32'"),
        (array(np.ones(2, np.float32), dtype="V4\x1b[31m"), r"'V4\x1b[31m'"),
        (array(np.ones(2, np.float32), shape=[3]), "shape (3,) and dtype float32 needs 12 bytes, but has 8"),
        (array(np.ones(2, np.float32), shape=[2**63, 2**63]), "needs"),
        (array(np.ones(0, np.float32)), "sizes above 0"),
        (array(np.ones(2, np.float32), shape=[-1, -2]), "sizes above 0"),
        (array(np.ones(1, np.float32), shape=[True]), "sizes above 0"),
        (array(np.ones(2, np.float32), shape=[2.0]), "sizes above 0"),
        (array(np.ones(1, np.float32), shape=[1] * 9), "0 to 8 sizes"),
        (array(np.ones(1, np.float32), shape="1"), "not flax's [shape, dtype, bytes]"),
        (msgpack.ExtType(1, b"\x93\x90\xa0\xcd"), "the data ends inside a value"),
        (msgpack.ExtType(1, packed(((1,), "float32", bytes(4))) + b"\x00"), "1 bytes follow"),
        (msgpack.ExtType(2, packed((1.0, 2.0))), "is not an array"),
        (msgpack.ExtType(1, b"\x93\xdd\xff\xff\xff\xff"), "4294967295 entries are declared where 0 bytes are left"),
        (1.5, "is not an array"),
        ([1.0], "is not an array"),
        (None, "is not an array"),
        (b"\x00\x00", "is not an array"),
        ("PLACEHOLDER://params.a", "its values are in other files"),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 2}}, "cut into chunks"),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": array(TREE["logit_scale"])}}, "hold 1"),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 2**40}, "chunks": {}}, "hold 0 values"),
        ({"__msgpack_chunked_array__": True, "shape": {"1": 1}, "chunks": {"0": array(np.ones(1))}}, "sizes above 0"),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"1": array(np.ones(1))}}, "not an array"),
    ],
)
def test_a_leaf_that_is_no_array_is_named(file: File, leaf: Any, expected: str):
    message = file.refused(legacy(TREE | {"decoder/Dense_0/kernel": leaf}))
    assert "leaf decoder/Dense_0/kernel" in message
    assert expected in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        *((pickle.dumps({"params": [1, 2]}, protocol), "looks like a pickle") for protocol in range(6)),
        (pickle.dumps([1]), "never loads"),
        (b"PK\x03\x04" + bytes(30), "zip archive, as torch.save"),
        (save({"a": np.ones(3, np.float32)}), "is a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b'{"params": {}}', "is not a flax checkpoint: it begins with b'{\"params'"),
        (b"\x93NUMPY\x01\x00", "at byte"),
        (packed({"0": {"weights": {}}, "1": {}}), "holds no params; expected {'0': {'params'"),
        (packed({"model": {}, "step": 1}), "found model, step"),
        (packed([]), "holds no params"),
        (packed([{"step": 1}]), "found a list"),
        (packed({}), "found nothing"),
        (packed({"params": {}}), "holds no params"),
        (packed({"params": {"a": {}}}), "holds no params"),
        (packed({"params": array(np.ones(1))}), "holds no params"),
        (packed({"params": {"a/b": array(np.ones(1))}}), "leaf a/b: a name is empty or has a slash"),
        (packed({"params": {"": array(np.ones(1))}}), "a name is empty"),
        (packed({"params": nested(TREE)}) + b"\x00", "1 bytes follow the end"),
    ],
)
def test_what_is_no_flax_checkpoint_is_refused_in_a_line(file: File, content: bytes, expected: str):
    assert expected in file.refused(content)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    for path in (tmp_path / "absent.ckpt", tmp_path):
        with pytest.raises(InputError, match="no such file; expected a flax checkpoint"):
            read_tree(path)


SMALL = legacy(TREE | {"b": np.ones(2, np.float16)}, {"0": {"mu": nested(TREE)}})


@given(cut=st.integers(0, len(SMALL) - 1))
def test_a_truncated_file_is_refused(file: File, cut: int):
    file.refused(SMALL[:cut])


@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 40))
def test_damaged_bytes_give_a_whole_tree_or_a_line(file: File, changes: list[tuple[int, int]], cut: int):
    content = bytearray(SMALL)
    for position, byte in changes:
        content[position] = byte
    damaged = bytes(content[: len(content) - cut])
    tracemalloc.start()
    try:
        tree = file.read(damaged)
    except InputError:
        file.refused(damaged)
    else:
        assert sum(values.nbytes for values in tree.values()) < 2 * len(SMALL)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 200_000


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_any_other_msgpack_is_refused_in_a_line(file: File, content: Any):
    file.refused(packed(content))
    file.refused(packed({"params": content}))
    file.refused(packed({"params": {"a": content}}))
