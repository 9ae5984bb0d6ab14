"""Patch subsets: exact, uniform, ascending, and a function of (seed, step, sample) alone."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from cacophony.kernels.counter_rng import fold, random_bits, root_key
from cacophony.kernels.layout import LayoutName, Packed, Padded, Patches, pack
from cacophony.kernels.patch_mask import MaskedPatches, keep_at_most, keep_fraction, patch_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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


@pytest.mark.parametrize("keep", [[9, 0], [8, 1], [-1, 0]])
def test_impossible_counts_are_refused(keep: list[int]) -> None:
    with pytest.raises(ValueError, match="keep_counts"):
        mask([1, 0], keep, [0, 1], spare=[0, 15])


def test_pixels_carry_gradients_to_their_frames() -> None:
    frames = torch.randn(32, 128, requires_grad=True)
    offsets, keep = torch.tensor([0, 32]), torch.tensor([5])
    masked = patch_mask(frames, offsets, keep, torch.tensor([0]), seed=0, step=0, layout="padded")
    masked.kept.values.sum().backward()
    assert isinstance(frames.grad, Tensor)
    assert int(frames.grad.sum()) == 5 * 256
    assert {*frames.grad.unique().tolist()} == {0.0, 1.0}
