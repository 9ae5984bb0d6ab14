"""Noise that has the lengths of real clips and captions."""

import torch
from cacophony.data.noise import CAPTION_TOKENS, CLIP_SECONDS, noise_batch


def test_the_batch_is_ragged_and_the_same_every_time() -> None:
    batch, again = noise_batch(20, 100), noise_batch(20, 100)
    assert torch.equal(batch.wave, again.wave)
    assert torch.equal(batch.token_ids, again.token_ids)
    seconds = batch.wave_lengths / 16_000
    assert CLIP_SECONDS[0] <= float(seconds.min()) < float(seconds.max()) <= CLIP_SECONDS[1]
    assert CAPTION_TOKENS[0] <= int(batch.token_lengths.min()) < int(batch.token_lengths.max()) <= CAPTION_TOKENS[1]


def test_captions_fit_a_short_position_table() -> None:
    assert int(noise_batch(20, 100, max_tokens=9).token_lengths.max()) == 9
