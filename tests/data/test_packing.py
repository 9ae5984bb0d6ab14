"""Packing is what NumPy's slices and concatenation give, and puts nothing outside the buffer."""

import numpy as np
import pytest
import torch
from cacophony.data.packing import allocate, copy_waves
from hypothesis import given, settings
from hypothesis import strategies as st

STRETCH = st.tuples(st.integers(0, 40), st.integers(0, 300), st.integers(0, 40))


@settings(max_examples=40)
@given(st.lists(STRETCH, max_size=8))
def test_the_stretches_lie_one_after_another(stretches: list[tuple[int, int, int]]) -> None:
    rng = np.random.default_rng(len(stretches))
    waves = [rng.integers(-32_768, 32_768, sum(parts)).astype(np.int16) for parts in stretches]
    wanted = [wave[start : start + length] for wave, (start, length, _) in zip(waves, stretches, strict=True)]
    packed, offsets = allocate([length for _, length, _ in stretches])
    copy_waves(wanted, packed.numpy(), offsets[:-1].tolist())
    assert packed.dtype == torch.int16
    assert packed.tolist() == [sample for wave in wanted for sample in wave.tolist()]
    assert offsets.tolist() == np.cumsum([0, *map(len, wanted)]).tolist()


@pytest.mark.parametrize(
    ("wave", "place"),
    [
        (np.zeros(9, np.int16), 4),
        (np.zeros(9, np.int16), -1),
        (np.zeros(9, np.float32), 0),
        (np.zeros((9, 1), np.int16), 0),
        (np.zeros(18, np.int16)[::2], 0),
    ],
)
def test_other_waves_and_places_outside_are_refused(wave: np.ndarray, place: int) -> None:
    with pytest.raises(ValueError, match=r"waves must be contiguous int16 vectors|of 9 samples does not fit at"):
        copy_waves([np.zeros(4, np.int16), wave], np.zeros(12, np.int16), [0, place])


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="1 waves and 2 places"):
        copy_waves([np.zeros(4, np.int16)], np.zeros(9, np.int16), [0, 4])
