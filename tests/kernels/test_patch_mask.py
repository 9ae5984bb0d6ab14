"""Patch subsets: exact, uniform, ascending, and a function of (seed, step, sample) alone."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cacophony.kernels.accuracy import named_tensors
from cacophony.kernels.backend import use_backend
from cacophony.kernels.choose_patches import keep_at_most, keep_fraction
from cacophony.kernels.counter_rng import fold, random_bits, root_key
from cacophony.kernels.layout import LayoutName, Packed, Padded, Patches, pack
from cacophony.kernels.patch_mask import (
    SPEC,
    MaskedPatches,
    argsort_masking,
    patch_mask,
    patch_mask_reference,
)
from cacophony.kernels.spec import Case
from cacophony.kernels.triton_runtime import HAS_TRITON, record_launches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CLIPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 15), st.integers(0, 32)), min_size=1, max_size=4)


def mask(
    times: Sequence[int],
    keep: Sequence[int],
    samples: Sequence[int],
    *,
    seed: int = 0,
    step: int = 0,
    layout: LayoutName = "packed",
    spare: Sequence[int] = (),
) -> MaskedPatches:
    """Mask clips of so many time patches (and spare frames); a pixel's value is its place in the spectrogram."""
    counts = [16 * time + extra for time, extra in itertools.zip_longest(times, spare, fillvalue=0)]
    frames = torch.arange(sum(counts) * 128, dtype=torch.float64).reshape(-1, 128)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return patch_mask(frames, offsets, torch.tensor(keep), torch.tensor(samples), seed=seed, step=step, layout=layout)


def numbers(patches: Patches) -> list[list[int]]:
    """Patch numbers (8 * time + freq) of each clip."""
    layout, flat = patches.layout, patches.positions.time * 8 + patches.positions.freq
    if isinstance(layout, Padded):
        flat = pack(flat, layout)
    return [clip.tolist() for clip in flat.split(layout.lengths.tolist())]


def kept_of(time: int, keep: int, sample: int, seed: int = 0, step: int = 0) -> list[int]:
    return numbers(mask([time], [keep], [sample], seed=seed, step=step).kept)[0]


@settings(max_examples=50)
@given(CLIPS, st.integers(0, 2**40), st.integers(0, 10**6))
def test_subsets_are_exact_ascending_and_partition_each_clip(
    clips: list[tuple[int, int, int]], seed: int, step: int
) -> None:
    times = [time for time, _, _ in clips]
    keep = [min(k, 8 * time) for time, _, k in clips]
    masked = mask(times, keep, range(len(clips)), seed=seed, step=step, spare=[spare for _, spare, _ in clips])
    for kept, restore, time, count in zip(numbers(masked.kept), numbers(masked.restore), times, keep, strict=True):
        assert len(kept) == count
        assert kept == sorted(set(kept))
        assert restore == sorted(set(restore))
        assert sorted(kept + restore) == list(range(8 * time))


@settings(max_examples=50)
@given(CLIPS, st.integers(0, 2**40))
def test_pixels_are_those_of_the_patch_frequency_fastest_and_time_major_inside(
    clips: list[tuple[int, int, int]], seed: int
) -> None:
    times, spare = [time for time, _, _ in clips], [extra for _, extra, _ in clips]
    keep = [min(k, 8 * time) for time, _, k in clips]
    masked = mask(times, keep, range(len(clips)), seed=seed, spare=spare)
    starts = [sum(16 * t + s for t, s in zip(times[:clip], spare, strict=False)) for clip in range(len(clips))]
    for patches in (masked.kept, masked.restore):
        rows = iter(patches.values)
        for start, clip in zip(starts, numbers(patches), strict=True):
            for number in clip:
                frames = start + 16 * (number // 8) + torch.arange(16)
                bands = 16 * (number % 8) + torch.arange(16)
                expected = [int(frame) * 128 + int(band) for frame in frames for band in bands]
                assert next(rows).tolist() == expected


def test_the_kept_patches_have_the_smallest_keyed_words() -> None:
    for sample, seed, step in itertools.product([0, 9], [0, 5], [0, 77]):
        words = random_bits(fold(root_key(seed, step, torch.device("cpu")), sample), torch.arange(40)).tolist()
        order = sorted(range(40), key=lambda number, words=words: (words[number], number))
        assert kept_of(5, 12, sample, seed, step) == sorted(order[:12])


def test_a_clip_keeps_the_same_patches_in_every_batch_and_order() -> None:
    times, keep, samples = [3, 0, 5, 1], [7, 0, 8, 3], [41, 2, 1_000_003, 0]
    whole = numbers(mask(times, keep, samples, seed=3, step=9).kept)
    for order in itertools.permutations(range(4)):
        again = mask([times[i] for i in order], [keep[i] for i in order], [samples[i] for i in order], seed=3, step=9)
        assert numbers(again.kept) == [whole[i] for i in order]
    for clip in range(4):
        assert [kept_of(times[clip], keep[clip], samples[clip], 3, 9)] == whole[clip : clip + 1]


def test_layouts_hold_the_same_patches() -> None:
    arguments = ([3, 0, 5, 1], [7, 0, 40, 3], [41, 2, 17, 0])
    packed, padded = mask(*arguments, layout="packed"), mask(*arguments, layout="padded")
    for one, other in ((packed.kept, padded.kept), (packed.restore, padded.restore)):
        assert isinstance(one.layout, Packed)
        assert isinstance(other.layout, Padded)
        assert numbers(one) == numbers(other)
        assert torch.equal(one.values, pack(other.values, other.layout))
        padding = ~other.layout.mask
        assert not bool(other.values[padding].any())
        assert not bool(other.positions.time[padding].any())
        assert not bool(other.positions.freq[padding].any())


def test_another_seed_step_or_sample_keeps_other_patches() -> None:
    base = kept_of(10, 40, sample=5, seed=1, step=2)
    assert kept_of(10, 40, sample=5, seed=1, step=2) == base
    others = [
        kept_of(10, 40, sample, seed, step)
        for sample, seed, step in [(6, 1, 2), (5, 2, 2), (5, 1, 3), (5, 2, 1), (2, 1, 5), (5 + 2**32, 1, 2)]
    ]
    for other in others:  # 40 of 80: a chance overlap has mean 20 and standard deviation 2.2
        assert len({*base} & {*other}) < 33


@pytest.mark.parametrize("varies", ["sample", "step", "seed"])
def test_every_patch_and_every_pair_is_kept_equally_often(varies: str) -> None:
    patches, keep, draws = 8, 3, 2000
    kept = torch.zeros(draws, patches, dtype=torch.float64)
    if varies == "sample":
        subsets = numbers(mask([1] * draws, [keep] * draws, range(draws)).kept)
    else:
        subsets = []
        for i in range(draws // 10):  # ten clips a call
            step, seed = (i, 0) if varies == "step" else (0, i)
            subsets += numbers(mask([1] * 10, [keep] * 10, range(10), step=step, seed=seed).kept)
    for row, subset in zip(kept, subsets, strict=True):
        row[subset] = 1.0
    rate = keep / patches
    # Sampling without replacement: this is chi-square with 7 degrees of freedom; P(> 30) = 1e-4.
    counts = kept.sum(dim=0)
    chi_square = ((counts - draws * rate) ** 2).sum() / (draws * rate * (1 - rate)) * (patches - 1) / patches
    assert float(chi_square) < 30
    pair_rate = keep * (keep - 1) / (patches * (patches - 1))
    pairs = (kept.T @ kept)[torch.ones(patches, patches).triu(1).bool()]
    z = (pairs - draws * pair_rate) / (draws * pair_rate * (1 - pair_rate)) ** 0.5
    assert float(z.abs().max()) < 4.5


@given(st.integers(0, 2000))
def test_keep_fraction_rounds_and_keeps_at_least_one_of_a_clip_with_patches(count: int) -> None:
    kept = int(keep_fraction(torch.tensor([8 * count]), 0.2)[0])
    assert kept == (max(1, round(0.2 * 8 * count)) if count else 0)
    assert keep_fraction(torch.tensor([8 * count]), 1.0).tolist() == [8 * count]
    assert keep_fraction(torch.tensor([8 * count]), 0.0).tolist() == [min(1, count)]


def test_keep_at_most() -> None:
    assert keep_at_most(torch.tensor([0, 8, 500, 504]), 500).tolist() == [0, 8, 500, 500]


def test_a_limit_above_the_count_keeps_everything() -> None:
    masked = mask([2, 1], [16, 8], [0, 1])
    assert numbers(masked.kept) == [list(range(16)), list(range(8))]
    assert numbers(masked.restore) == [[], []]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_batch_without_patches_is_legal(layout: LayoutName) -> None:
    masked = mask([0, 0], [0, 0], [3, 4], layout=layout, spare=[15, 0])
    assert numbers(masked.kept) == numbers(masked.restore) == [[], []]
    assert masked.kept.layout.batch_size == 2
    assert masked.kept.values.shape[-1] == 256


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([9, 0], r"keep_counts\[0\] is 9, expected 0 to the clip's 8 patches"),
        ([8, 1], r"keep_counts\[1\] is 1, expected 0 to the clip's 0 patches"),
        ([-1, 0], r"keep_counts\[0\] is -1, expected 0 to"),
    ],
)
def test_impossible_counts_are_refused(keep: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask([1, 0], keep, [0, 1], spare=[0, 15])


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("frames", torch.zeros(32, 127), r"frames has shape \[32, 127\], expected \[32, 128\]"),
        ("frames", torch.zeros(33, 128), "frame_offsets must rise from 0 to the 33 frames"),
        ("frame_offsets", torch.tensor([0, 33, 32]), "frame_offsets must rise from 0 to the 32 frames"),
        ("frame_offsets", torch.tensor([0, 16, 32], dtype=torch.int32), "frame_offsets is torch.int32, expected"),
        ("keep_counts", torch.tensor([1.0, 2.0]), "keep_counts is torch.float32, expected torch.int64"),
        ("keep_counts", torch.tensor([1]), r"keep_counts has shape \[1\], expected \[2\]"),
        ("keep_counts", torch.zeros(2, dtype=torch.int64, device="meta"), "keep_counts is on meta, expected cpu"),
        ("sample_index", torch.tensor([[1, 2]]), r"sample_index has shape \[1, 2\], expected \[2\]"),
        ("sample_index", torch.zeros(2, dtype=torch.int64, device="meta"), "sample_index is on meta, expected cpu"),
    ],
)
def test_wrong_arguments_are_named(name: str, wrong: Tensor, message: str) -> None:
    arguments: dict[str, Any] = {
        "frames": torch.zeros(32, 128),
        "frame_offsets": torch.tensor([0, 16, 32]),
        "keep_counts": torch.tensor([1, 2]),
        "sample_index": torch.tensor([3, 4]),
    }
    with pytest.raises(ValueError, match=f"patch_mask: {message}"):
        patch_mask(**{**arguments, name: wrong}, seed=0, step=0)


def test_pixels_carry_gradients_to_their_frames() -> None:
    frames = torch.randn(32, 128, requires_grad=True)
    offsets, keep = torch.tensor([0, 32]), torch.tensor([5])
    masked = patch_mask(frames, offsets, keep, torch.tensor([0]), seed=0, step=0, layout="padded")
    masked.kept.values.sum().backward()
    assert isinstance(frames.grad, Tensor)
    assert int(frames.grad.sum()) == 5 * 256
    assert {*frames.grad.unique().tolist()} == {0.0, 1.0}


needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def assert_same(found: MaskedPatches, expected: MaskedPatches) -> None:
    for (name, tensor), (_, other) in zip(named_tensors(found), named_tensors(expected), strict=True):
        assert tensor.dtype == other.dtype
        assert torch.equal(tensor, other), name


@needs_triton
@settings(max_examples=25)
@given(CLIPS, st.integers(0, 2**62), st.integers(0, 2**31), st.sampled_from(["packed", "padded"]))
def test_fused_is_the_reference_bit_for_bit(
    clips: list[tuple[int, int, int]], seed: int, step: int, layout: LayoutName
) -> None:
    counts = torch.tensor([0, *(16 * time + spare for time, spare, _ in clips)])
    frames = torch.randn(int(counts.sum()), 128, device=DEVICE)
    keep = torch.tensor([min(k, 8 * time) for time, _, k in clips])
    arguments = (frames, counts.cumsum(0), keep, torch.randint(2**62, (len(clips),)))
    with use_backend("fused"):
        found = patch_mask(*arguments, seed=seed, step=step, layout=layout)
    assert_same(found, patch_mask_reference(*arguments, seed=seed, step=step, layout=layout))


@needs_triton
def test_fused_takes_16384_patches_and_refuses_more() -> None:
    frames, offsets = torch.randn(32_768, 128, device=DEVICE), torch.tensor([0, 32_768])
    arguments = (frames, offsets, torch.tensor([5000]), torch.tensor([7]))
    with use_backend("fused"):
        found = patch_mask(*arguments, seed=1, step=2, layout="packed")
        with pytest.raises(ValueError, match="clip 0 has 16392 patches, expected at most 16384"):
            patch_mask(torch.zeros(32_784, 128), torch.tensor([0, 32_784]), *arguments[2:], seed=1, step=2)
    assert_same(found, patch_mask_reference(*arguments, seed=1, step=2, layout="packed"))


@needs_triton
def test_fused_refuses_frames_that_are_not_floating() -> None:
    frames = torch.zeros(16, 128, dtype=torch.int16, device=DEVICE)
    with use_backend("fused"), pytest.raises(ValueError, match=r"frames is torch\.int16, expected torch\.float32"):
        patch_mask(frames, torch.tensor([0, 16]), torch.tensor([1]), torch.tensor([0]), seed=0, step=0)


@pytest.mark.parametrize("case", [case for case in SPEC.cases if not case.paper], ids=lambda case: case.name)
def test_the_argsort_rival_keeps_the_same_patches(case: Case) -> None:
    inputs = case.inputs(torch.device("cpu"), torch.float32)
    assert_same(argsort_masking(**inputs), patch_mask_reference(**inputs))


class DeviceCalls(TorchDispatchMode):
    """Counts calls that a GPU would be busy with: of tensors derived from ``on_device`` or on ``meta``, no views."""

    def __init__(self, *on_device: Tensor) -> None:
        super().__init__()
        self.derived = list(on_device)  # which keeps them, and so their ids, alive
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        found = [tensor for _, tensor in named_tensors(outputs)]
        involved = [tensor for _, tensor in named_tensors(list(args))] + found
        ids = {id(tensor) for tensor in self.derived}
        if any(id(tensor) in ids or tensor.device.type == "meta" for tensor in involved):
            self.derived += found
            allocates_only = "empty" in func.name() or func.namespace == "cacophony"
            self.count += not (func.is_view or allocates_only)
        return outputs


@needs_triton
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_fused_masking_is_two_copies_and_two_launches(layout: LayoutName) -> None:
    offsets, keep, samples = torch.tensor([0, 160, 200]), torch.tensor([16, 2]), torch.tensor([5, 6])
    frames = torch.randn(200, 128)
    # On meta tensors anything read back from the device is an error; only uploads and launches are left.
    with use_backend("fused"), record_launches() as launches, DeviceCalls() as fused:
        patch_mask(frames.to("meta"), offsets, keep, samples, seed=0, step=0, layout=layout)
    copies = fused.count - 1  # the frames, which are there already
    assert (copies, len(launches)) == (2, 2)
    with DeviceCalls(frames, samples) as reference:  # what is made from host lengths alone is not even counted
        patch_mask_reference(frames, offsets, keep, samples, seed=0, step=0, layout=layout)
    assert reference.count >= copies + len(launches) + 8
