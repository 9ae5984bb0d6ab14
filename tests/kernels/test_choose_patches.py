"""Rows of chosen patches, and arguments that do not fit; which patches are chosen is in test_patch_mask.py."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cacophony.kernels.accuracy import named_tensors
from cacophony.kernels.backend import Backend, use_backend
from cacophony.kernels.choose_patches import ChosenPatches, choose_patches
from cacophony.kernels.layout import LayoutName
from cacophony.kernels.triton_runtime import HAS_TRITON, record_launches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["reference", pytest.param("fused", marks=needs_triton)])
def asked(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Run a test with each implementation."""
    with use_backend(request.param):
        yield request.param


def choose(patches: list[int], keep: list[int], layout: LayoutName, seed: int = 0) -> ChosenPatches:
    index = torch.arange(len(patches), device=DEVICE)
    counts = torch.tensor(patches, dtype=torch.int64)
    return choose_patches(index, counts, torch.tensor(keep, dtype=torch.int64), seed=seed, step=0, layout=layout)


@pytest.mark.usefixtures("asked", "poison")
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_patch_lies_where_its_row_says(layout: LayoutName) -> None:
    """Kept slots first, then restore's; together the valid slots are all patches, once."""
    patches = [24, 0, 8, 40, 16]
    chosen = choose(patches, [5, 0, 8, 11, 0], layout, seed=7)
    time = torch.cat((chosen.kept.time.flatten(), chosen.restore.time.flatten()))
    freq = torch.cat((chosen.kept.freq.flatten(), chosen.restore.freq.flatten()))
    numbers = torch.tensor(list(itertools.chain.from_iterable(map(range, patches))), device=DEVICE)
    assert chosen.rows.dtype == torch.int32
    rows = chosen.rows.long()
    assert torch.equal(time[rows] * 8 + freq[rows], numbers)
    valid = torch.cat((chosen.kept.layout.valid.flatten(), chosen.restore.layout.valid.flatten()))
    assert torch.equal(rows.sort().values, valid.nonzero()[:, 0])


@needs_triton
@settings(max_examples=12)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=4),
    st.integers(0, 2**62),
    st.sampled_from(["packed", "padded"]),
)
def test_fused_is_the_reference(clips: list[tuple[int, int]], seed: int, layout: LayoutName) -> None:
    patches = [8 * columns for columns, _ in clips]
    keep = [min(k, count) for (_, k), count in zip(clips, patches, strict=True)]
    with use_backend("fused"):
        found = dict(named_tensors(choose(patches, keep, layout, seed)))
    with use_backend("reference"):
        expected = dict(named_tensors(choose(patches, keep, layout, seed)))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@needs_triton
def test_it_is_one_launch_and_reads_nothing_back() -> None:
    counts = torch.tensor([752] * 4)
    with use_backend("fused"), record_launches() as launches:
        chosen = choose_patches(torch.empty(4, dtype=torch.int64, device="meta"), counts, counts // 5, seed=0, step=1)
    assert len(launches) == 1
    assert chosen.rows.shape == (4 * 752,)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("sample_index", torch.tensor([1, 2], dtype=torch.int32), "sample_index is torch.int32, expected torch.int64"),
        ("patch_counts", torch.tensor([8]), r"patch_counts has shape \[1\], expected \[2\]"),
        ("keep_counts", torch.tensor([1.0, 2.0]), "keep_counts is torch.float32, expected torch.int64"),
        ("keep_counts", torch.tensor([9, 2]), r"keep_counts\[0\] is 9, expected 0 to the clip's 8 patches"),
        ("keep_counts", torch.zeros(2, dtype=torch.int64, device="meta"), "keep_counts is on meta, expected cpu"),
    ],
)
def test_wrong_arguments_are_named(name: str, wrong: Tensor, message: str) -> None:
    arguments: dict[str, Any] = {
        "sample_index": torch.tensor([3, 4]),
        "patch_counts": torch.tensor([8, 16]),
        "keep_counts": torch.tensor([1, 2]),
    }
    with pytest.raises(ValueError, match=f"choose_patches: {message}"):
        choose_patches(**{**arguments, name: wrong}, seed=0, step=0)
