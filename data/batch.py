"""The batch that flows from the loader into the models: waves and caption tokens, each packed end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class AudioTextBatch:
    """B clips with their captions, without padding.

    Both offsets stay on the host always: lengths decide shapes, and reading them from a device would make the host
    wait for it.
    """

    wave: Tensor
    """int16 `[S]`: the samples (16 kHz) of all clips, one after another."""
    wave_offsets: Tensor
    """int64 `[B+1]`, on the host: clip b is `wave[wave_offsets[b]:wave_offsets[b+1]]`."""
    sample_index: Tensor
    """int64 `[B]`: index of each clip in the shards; keys masks and dropout."""
    token_ids: Tensor
    """int32 `[T]`: the caption tokens of all clips, one after another."""
    token_offsets: Tensor
    """int64 `[B+1]`, on the host, as `wave_offsets`; all zeros where there is no text."""

    @property
    def num_clips(self) -> int:
        """B, the number of clips."""
        return len(self.sample_index)

    @property
    def wave_lengths(self) -> Tensor:
        """int64 `[B]`, on the host: samples in each clip."""
        return self.wave_offsets.diff()

    @property
    def token_lengths(self) -> Tensor:
        """int64 `[B]`, on the host: tokens in each caption."""
        return self.token_offsets.diff()

    def to(self, device: torch.device | str) -> AudioTextBatch:
        """The batch with its contents on `device` (copied without waiting where the memory is pinned)."""
        return replace(
            self,
            wave=self.wave.to(device, non_blocking=True),
            sample_index=self.sample_index.to(device, non_blocking=True),
            token_ids=self.token_ids.to(device, non_blocking=True),
        )

    def pin_memory(self) -> AudioTextBatch:
        """The batch with its contents in page-locked memory; what lies there already is not copied."""
        return replace(
            self,
            wave=self.wave.pin_memory(),
            sample_index=self.sample_index.pin_memory(),
            token_ids=self.token_ids.pin_memory(),
        )

    def select(self, start: int, stop: int) -> AudioTextBatch:
        """Clips `start` to `stop` as views, with offsets from 0 again. Raises `IndexError` outside the batch."""
        if not 0 <= start <= stop <= self.num_clips:
            raise IndexError(f"clips {start} to {stop} of a batch of {self.num_clips}")
        wave_offsets = self.wave_offsets[start : stop + 1]
        token_offsets = self.token_offsets[start : stop + 1]
        return AudioTextBatch(
            wave=self.wave[int(wave_offsets[0]) : int(wave_offsets[-1])],
            wave_offsets=wave_offsets - wave_offsets[0],
            sample_index=self.sample_index[start:stop],
            token_ids=self.token_ids[int(token_offsets[0]) : int(token_offsets[-1])],
            token_offsets=token_offsets - token_offsets[0],
        )


def collate(
    waves: Sequence[np.ndarray], sample_index: Sequence[int] | np.ndarray, tokens: Sequence[np.ndarray] | None
) -> AudioTextBatch:
    """Pack int16 waves `[n_b]` and, unless None, token ids `[t_b]` of B clips into one batch on the host.

    Raises `ValueError` when the three do not name the same number of clips or a wave is not int16.
    """
    if any(wave.dtype != np.int16 for wave in waves):
        raise ValueError(f"waves must be int16, got {sorted({str(wave.dtype) for wave in waves})}")
    return collate_packed(_concatenate(waves, np.int16), _offsets(waves), sample_index, tokens)


def collate_packed(
    wave: Tensor,
    wave_offsets: Tensor,
    sample_index: Sequence[int] | np.ndarray,
    tokens: Sequence[np.ndarray] | None,
) -> AudioTextBatch:
    """Join waves that are packed already (int16 `[S]`, offsets int64 `[B+1]`) with token ids `[t_b]`, or none.

    Raises `ValueError` when the three do not name the same number of clips.
    """
    clips = len(wave_offsets) - 1
    texts = [np.zeros(0, np.int32)] * clips if tokens is None else tokens
    if not clips == len(sample_index) == len(texts):
        raise ValueError(f"{clips} waves, {len(sample_index)} sample indices and {len(texts)} token rows")
    return AudioTextBatch(
        wave=wave,
        wave_offsets=wave_offsets,
        sample_index=torch.from_numpy(np.array(sample_index, np.int64)),
        token_ids=_concatenate(texts, np.int32),
        token_offsets=_offsets(texts),
    )


def _concatenate(rows: Sequence[np.ndarray], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.concatenate(rows).astype(dtype, copy=False) if rows else np.zeros(0, dtype))


def _offsets(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *map(len, rows)], dtype=np.int64))
