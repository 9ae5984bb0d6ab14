"""Packed batches: nothing is lost, parts are views, offsets stay on the host."""

import numpy as np
import pytest
import torch
from cacophony.data.batch import AudioTextBatch, collate
from hypothesis import given, settings
from hypothesis import strategies as st

LENGTHS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=6)


def rows(lengths: list[tuple[int, int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(len(lengths))
    waves = [rng.integers(-32_768, 32_768, n).astype(np.int16) for n, _ in lengths]
    return waves, [rng.integers(0, 300, t).astype(np.int32) for _, t in lengths]


def clip(batch: AudioTextBatch, b: int) -> tuple[list[int], list[int]]:
    wave = batch.wave[batch.wave_offsets[b] : batch.wave_offsets[b + 1]]
    return wave.tolist(), batch.token_ids[batch.token_offsets[b] : batch.token_offsets[b + 1]].tolist()


@settings(deadline=None, max_examples=30)
@given(LENGTHS, st.data())
def test_every_clip_comes_back_from_the_batch_and_its_parts(
    lengths: list[tuple[int, int]], data: st.DataObject
) -> None:
    waves, tokens = rows(lengths)
    batch = collate(waves, range(10, 10 + len(waves)), tokens)
    whole = [(wave.tolist(), ids.tolist()) for wave, ids in zip(waves, tokens, strict=True)]
    start = data.draw(st.integers(0, len(waves)))
    part = batch.select(start, data.draw(st.integers(start, len(waves))))
    assert [clip(batch, b) for b in range(batch.num_clips)] == whole
    assert [clip(part, b) for b in range(part.num_clips)] == whole[start : start + part.num_clips]
    assert part.sample_index.tolist() == list(range(10 + start, 10 + start + part.num_clips))
    assert int(part.wave_offsets[0]) == int(part.token_offsets[0]) == 0
    assert list(zip(batch.wave_lengths.tolist(), batch.token_lengths.tolist(), strict=True)) == lengths


def test_types_are_as_promised() -> None:
    batch = collate(*[rows([(5, 2), (3, 0)])[0], np.array([4, 9])], tokens=None)
    assert (batch.wave.dtype, batch.sample_index.dtype, batch.token_ids.dtype) == (
        torch.int16,
        torch.int64,
        torch.int32,
    )
    assert batch.wave_offsets.tolist() == [0, 5, 8]
    assert batch.token_offsets.tolist() == [0, 0, 0]
    assert batch.token_offsets.dtype == batch.wave_offsets.dtype == torch.int64


def test_parts_share_the_samples() -> None:
    batch = collate(*rows([(5, 2), (3, 4)])[:1], [0, 1], None)
    assert batch.select(1, 2).wave.data_ptr() == batch.wave[5:].data_ptr()


def test_offsets_stay_on_the_host() -> None:
    waves, tokens = rows([(5, 2), (3, 4)])
    moved = collate(waves, [0, 1], tokens).to("meta")
    assert {moved.wave.device.type, moved.sample_index.device.type, moved.token_ids.device.type} == {"meta"}
    assert moved.wave_offsets.device.type == moved.token_offsets.device.type == "cpu"
    assert moved.wave_lengths.tolist() == [5, 3]


def test_mistakes_are_refused() -> None:
    waves, tokens = rows([(5, 2), (3, 4)])
    with pytest.raises(ValueError, match="2 waves, 1 sample indices"):
        collate(waves, [0], tokens)
    with pytest.raises(ValueError, match="must be int16, got"):
        collate([wave.astype(np.float32) for wave in waves], [0, 1], tokens)
    with pytest.raises(IndexError, match="clips 1 to 3 of a batch of 2"):
        collate(waves, [0, 1], tokens).select(1, 3)
