"""Finding the nearest of many fingerprints.

Each frame of a fingerprint gives eight keys: what four neighbouring bands do in three frames. Clips that have keys in
common at the same distance in time are compared in full; so the time of a search grows with the keys that agree, not
with the seconds that are searched.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .fingerprint import Fingerprint, Words, similarity

MAX_COMPARED = 256
"""Places that are compared in full, those with most keys in common first."""
MAX_BUCKET = 4_096
"""A key that more places have says nothing."""

_KEY_BANDS, _KEY_FRAMES, _KEY_GAP, _KEY_TRITS = 4, 3, 2, 6
_SPAN = _KEY_GAP * (_KEY_FRAMES - 1)
_GROUPS = 32 // _KEY_BANDS
_HALF = 1 << 31


class Nearest(NamedTuple):
    """The fingerprint in an index that is most similar to one that was searched."""

    clip: int
    """Its number in the index."""
    similarity: float


class FingerprintIndex:
    """Fingerprints in memory: about 1.2 kB for each second of a clip in which something happens."""

    def __init__(self, clips: Sequence[Fingerprint]) -> None:
        self._clips = clips
        self._starts = np.cumsum([0, *(len(clip.signs) for clip in clips)])
        keys, places = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
        for clip, start in zip(clips, self._starts, strict=False):
            clip_keys, frames = _keys(clip)
            keys.append(clip_keys)
            places.append((frames + start).astype(np.uint32))
        all_keys = np.concatenate(keys)
        order = np.argsort(all_keys, kind="stable")
        self._keys, self._places = all_keys[order], np.concatenate(places)[order]

    def nearest(self, phases: Sequence[Fingerprint]) -> Nearest | None:
        """The most similar clip to one that is given by its fingerprints at several phases; None where none is near.

        Of equally similar ones that with the lowest number.
        """
        best: Nearest | None = None
        for _, phase, clip, offset in self._candidates(phases)[:MAX_COMPARED]:
            score = similarity(phases[phase], self._clips[clip], offset)
            if score > 0 and (best is None or (-score, clip) < (-best.similarity, best.clip)):
                best = Nearest(clip, score)
        return best

    def _candidates(self, phases: Sequence[Fingerprint]) -> list[tuple[int, int, int, int]]:
        """(-keys in common, phase, clip, frame of that clip at which the searched one begins), most keys first."""
        found: list[tuple[int, int, int, int]] = []
        for phase, searched in enumerate(phases):
            keys, frames = _keys(searched)
            first = np.searchsorted(self._keys, keys, side="left")
            count = np.searchsorted(self._keys, keys, side="right") - first
            count[count > MAX_BUCKET] = 0
            # The entries first[i], first[i] + 1, … of every key i, one after the other.
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            places = self._places[np.repeat(first, count) + within].astype(np.int64)
            clips = np.searchsorted(self._starts, places, side="right") - 1
            offsets = places - self._starts[clips] - np.repeat(frames, count)
            met, votes = np.unique((clips << 32) + (offsets + _HALF), return_counts=True)
            for i in np.argsort(-votes, kind="stable")[:MAX_COMPARED].tolist():
                clip, offset = divmod(int(met[i]), 1 << 32)
                found.append((-int(votes[i]), phase, clip, offset - _HALF))
        return sorted(found)


def _keys(clip: Fingerprint) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Keys, and the frame of each: of the groups of four bands in which enough happens."""
    frames = len(clip.signs) - _SPAN
    if frames <= 0:
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    shifts = np.arange(_GROUPS, dtype=np.uint32) * np.uint32(_KEY_BANDS)
    keys = np.zeros((frames, _GROUPS), np.uint32)
    trits = np.zeros((frames, _GROUPS), np.uint8)
    for step in range(_KEY_FRAMES):
        part = slice(step * _KEY_GAP, step * _KEY_GAP + frames)
        signs, heard = _nibbles(clip.signs[part], shifts), _nibbles(clip.heard[part], shifts)
        keys = (keys << np.uint32(2 * _KEY_BANDS)) | (signs << np.uint32(_KEY_BANDS)) | heard
        trits += np.bitwise_count(heard)
    keys |= np.arange(_GROUPS, dtype=np.uint32) << np.uint32(2 * _KEY_BANDS * _KEY_FRAMES)
    at, group = np.nonzero(trits >= _KEY_TRITS)
    return keys[at, group], at


def _nibbles(words: Words, shifts: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return (words[:, None] >> shifts) & np.uint32((1 << _KEY_BANDS) - 1)
