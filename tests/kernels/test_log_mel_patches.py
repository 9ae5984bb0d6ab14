"""Patches straight from the wave: the spectrogram's, bit for bit, wherever they are wanted."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cacophony.errors import InputError
from cacophony.kernels import backend
from cacophony.kernels.accuracy import named_tensors
from cacophony.kernels.backend import Backend, use_backend
from cacophony.kernels.choose_patches import keep_at_most
from cacophony.kernels.layout import LayoutName
from cacophony.kernels.log_mel import Spectrogram, log_mel, num_patches
from cacophony.kernels.log_mel_patches import kept_log_mel, log_mel_patches, log_mel_patches_reference, masked_log_mel
from cacophony.kernels.native import native_library
from cacophony.kernels.patch_mask import patch_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

EDGE_LENGTHS = [0, 1, 160, 161, 2400, 2401, 2560, 2561, 4960, 4961, 8000]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LIBRARY = native_library("cuda" if torch.cuda.is_available() else "cpu")
needs_native = pytest.mark.skipif(LIBRARY.handle is None, reason=LIBRARY.about)


@pytest.fixture(params=["reference", pytest.param("fused", marks=needs_native)])
def asked(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Run a test with each implementation."""
    with use_backend(request.param):
        yield request.param


def noise(lengths: list[int], dtype: torch.dtype = torch.int16, seed: int = 0) -> tuple[Tensor, Tensor]:
    wave = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed)) * 0.1
    wave = (wave * 32768).to(torch.int16) if dtype == torch.int16 else wave.to(dtype)
    return wave.to(DEVICE), torch.tensor([0, *lengths]).cumsum(0)


def pixels(spectrogram: Spectrogram) -> Tensor:
    """Cut frames into patches ``[patches, 256]``, a clip, a time and a frequency after another."""
    cut = [
        clip[16 * time : 16 * time + 16, 16 * freq : 16 * freq + 16].flatten()
        for clip in spectrogram.frames.split(spectrogram.frame_offsets.diff().tolist())
        for time, freq in itertools.product(range(len(clip) // 16), range(8))
    ]
    return torch.stack([spectrogram.frames.new_zeros(256), *cut])[1:]


@pytest.mark.usefixtures("asked")
@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(EDGE_LENGTHS), max_size=5),
    st.sampled_from([torch.int16, torch.float32]),
    st.randoms(use_true_random=False),
    st.integers(0, 100),
    st.booleans(),
)
def test_every_patch_is_the_spectrograms_bit_for_bit_in_its_row(
    lengths: list[int], dtype: torch.dtype, random: Any, percent: int, columns: bool
) -> None:
    """Rows in any order, of single patches or of whole columns; those beside the result are left out."""
    wave, offsets = noise(lengths, dtype)
    expected = pixels(log_mel(wave, offsets))
    unit = 8 if columns else 1
    order = list(range(-2, len(expected) // unit + 3))
    random.shuffle(order)
    rows = [row * unit + i for row in order[: len(expected) // unit] for i in range(unit)]
    count = len(expected) * percent // 100
    found = log_mel_patches(wave, offsets, torch.tensor(rows, dtype=torch.int32, device=DEVICE), count)
    assert found.shape == (count, 256)
    for row, patch in enumerate(found):
        assert torch.equal(patch, expected[rows.index(row)] if row in rows else torch.zeros(256, device=DEVICE))


@pytest.mark.usefixtures("asked", "poison")
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_all_patches_as_they_come_leave_nothing_unwritten(dtype: torch.dtype) -> None:
    wave, offsets = noise([8000, 0, 2400, 30_000, 2401], dtype)
    patches = int(num_patches(offsets.diff()).sum())
    found = log_mel_patches(wave, offsets, torch.arange(patches, dtype=torch.int32, device=DEVICE), patches, gaps=False)
    assert torch.equal(found, pixels(log_mel(wave, offsets)))


@pytest.mark.usefixtures("asked", "poison")
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("limit", [0, 13, 1000])
def test_chosen_patches_are_the_masked_spectrograms(layout: LayoutName, limit: int) -> None:
    wave, offsets = noise([8000, 12_345, 0, 2401, 2400])
    spectrogram, index = log_mel(wave, offsets), torch.tensor([4, 2**40, 0, 7, 9])
    keep = keep_at_most(spectrogram.patch_counts, limit)
    draw: dict[str, Any] = {"seed": 3, "step": 5, "layout": layout}
    expected = patch_mask(spectrogram.frames, spectrogram.frame_offsets, keep, index, **draw)
    masked = masked_log_mel(wave, offsets, keep, index, **draw)
    kept = kept_log_mel(wave, offsets, keep, index, **draw)
    for found, other in ((masked, expected), (kept, expected.kept)):
        pairs = list(zip(named_tensors(found), named_tensors(other), strict=True))
        assert all(name == named and torch.equal(one, two) for (name, one), (named, two) in pairs)


@pytest.mark.usefixtures("asked")
def test_a_column_of_which_nothing_is_wanted_is_not_looked_at() -> None:
    """No NaN of another column gets into a wanted one, and what lies there changes no bit."""
    wave, offsets = noise([16 * 160 * 4], torch.float32)
    rows = torch.full((32,), -1, dtype=torch.int32, device=DEVICE)
    rows[8:16] = torch.arange(8, dtype=torch.int32, device=DEVICE).flip(0)
    clean = log_mel_patches(wave, offsets, rows, 8)
    wave[31 * 160 + 512 :] = float("nan")  # frame 31 is the last of column 1
    wave[:2560] = float("nan")
    assert torch.equal(log_mel_patches(wave, offsets, rows, 8), clean)


@needs_native
def test_the_number_of_threads_changes_no_bit() -> None:
    wave, offsets = noise([90_000, 1, 0, 41_234, 2700])
    patches = int(num_patches(offsets.diff()).sum())
    rows = torch.randperm(patches, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.int32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with use_backend("fused"):
                found.append(log_mel_patches(wave, offsets, rows, patches // 2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_float64_is_the_references_alone_and_exact() -> None:
    wave, offsets = noise([8000], torch.float64)
    rows = torch.arange(24, dtype=torch.int32, device=DEVICE)
    found = log_mel_patches(wave, offsets, rows, 24)
    assert found.dtype == torch.float64
    assert torch.equal(found, pixels(log_mel(wave, offsets)))
    if LIBRARY.handle is not None:
        with use_backend("fused"), pytest.raises(ValueError, match=r"log_mel_patches: wave has dtype torch.float64"):
            log_mel_patches(wave, offsets, rows, 24)


def test_the_reference_has_a_gradient_and_fused_refuses_it() -> None:
    wave, offsets = noise([8000], torch.float32)
    wave.requires_grad_()
    rows = torch.full((24,), -1, dtype=torch.int32, device=DEVICE)
    rows[8:16] = torch.arange(8, dtype=torch.int32, device=DEVICE)
    log_mel_patches_reference(wave, offsets, rows, 8).sum().backward()
    assert wave.grad is not None
    touched = wave.grad.nonzero()[:, 0]
    assert int(touched.min()) >= 2560
    assert int(touched.max()) < 2560 + 15 * 160 + 400
    if LIBRARY.handle is not None:
        with use_backend("fused"), pytest.raises(ValueError, match="log_mel_patches: wave asks for its gradient"):
            log_mel_patches(wave, offsets, rows, 8)


def test_on_meta_it_has_the_shape_of_the_fused_result() -> None:
    wave, offsets = noise([8000, 2401])
    with use_backend("fused"):
        rows = torch.empty(32, dtype=torch.int32, device="meta")
        found = log_mel_patches(wave.to("meta"), offsets, rows, 7)
    assert (found.shape, found.dtype, found.device.type) == ((7, 256), torch.float32, "meta")


def test_without_its_library_it_is_the_reference_and_fused_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = {DEVICE.type: "its library was not built"}
    absent = backend.Op("log_mel_patches", log_mel_patches_reference, {}, needs_triton=False, absent=reason)
    monkeypatch.setitem(backend._ops, "log_mel_patches", absent)
    wave, offsets = noise([2401])
    rows = torch.arange(8, dtype=torch.int32, device=DEVICE)
    assert torch.equal(log_mel_patches(wave, offsets, rows, 8), log_mel_patches_reference(wave, offsets, rows, 8))
    with use_backend("fused"), pytest.raises(InputError, match=r"log_mel_patches on \w+: its library was not built"):
        log_mel_patches(wave, offsets, rows, 8)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("wave", torch.zeros(5000, dtype=torch.int32), "wave has dtype torch.int32, expected int16"),
        ("wave_offsets", torch.tensor([0, 4999]), "wave_offsets must rise from 0 to the 5000 samples"),
        ("rows", torch.arange(16), "rows is torch.int64, expected torch.int32"),
        ("rows", torch.arange(15, dtype=torch.int32), r"rows has shape \[15\], expected \[16\]"),
        ("rows", torch.arange(16, dtype=torch.int32, device="meta"), "rows is on meta, expected cpu as wave"),
        ("rows", torch.arange(16, dtype=torch.int32) // 2, "rows holds 0 twice, expected one patch in a row"),
        ("rows", torch.arange(16, dtype=torch.int32) + 1, "rows names 15 of 16 rows, expected gaps=True or all"),
        ("count", -1, "count is -1, expected 0 to"),
        ("count", 2**31, r"count is 2147483648, expected 0 to 2\*\*31 - 1"),
    ],
)
def test_wrong_arguments_are_named(name: str, wrong: Any, message: str) -> None:
    arguments: dict[str, Any] = {
        "wave": torch.zeros(5000),
        "wave_offsets": torch.tensor([0, 5000]),
        "rows": torch.arange(16, dtype=torch.int32),
        "count": 16,
    }
    with pytest.raises(ValueError, match=f"log_mel_patches: {message}"):
        log_mel_patches(**{**arguments, name: wrong}, gaps=False)
