"""What chance decides about a step: its clips, the stretch of each, its caption, and who replaces a damaged one.

All of it is a pure function of (seed, step, row): it depends on no generator state, no count of ranks or threads and no
way of decoding, so any loader gives the same batches and continues from a single number.
"""

from dataclasses import dataclass

import numpy as np

from .draws import integers, mix, permutation, uniform
from .shards import Clip

# Each use of random bits has its own key, so that none shares its draws with another.
_ORDER, _CROP, _KIND, _CAPTION, _REPLACEMENT = range(5)


@dataclass(frozen=True, slots=True)
class Draw:
    """A clip of a step and the random numbers that belong to it."""

    clip: int
    """Index of the clip in the shards."""
    place: int
    """64 random bits: where the crop lies."""
    kind: float
    """Uniform in [0, 1): below the probability of a synthetic caption it is one."""
    choice: int
    """64 random bits: which of the captions of that kind."""

    def crop(self, samples: int, longest: int | None) -> tuple[int, int]:
        """First sample and count of the stretch of a clip of so many samples: at most `longest`, anywhere."""
        frames = samples if longest is None else min(samples, longest)
        return self.place % (samples - frames + 1), frames

    def caption(self, clip: Clip, synthetic_probability: float) -> str:
        """One of the clip's captions; of the other kind where it has none of this one, empty where it has none."""
        real, synthetic = clip.captions, clip.synthetic_captions
        choices = synthetic if synthetic and (self.kind < synthetic_probability or not real) else real
        return choices[self.choice % len(choices)] if choices else ""


@dataclass(frozen=True, slots=True)
class Step:
    """A global batch: rows `first` to `first + batch_size` of the epoch's order."""

    seed: int
    epoch: int
    order: np.ndarray
    """The epoch's permutation of all clips, int64."""
    first: int
    batch_size: int

    def draws(self, rows: slice) -> list[Draw]:
        """Draw what decides about these rows of the global batch."""
        return self._draws(self.order[self.first : self.first + self.batch_size][rows])

    def replacement(self, clip: int, attempt: int) -> Draw:
        """Draw whom the step takes for a clip that cannot be used: attempt 0, then 1 if that one cannot either, …

        It is drawn from the clips outside the step's batch, so that none is in a batch twice (unless the batch is the
        whole corpus, or two damaged clips of a batch draw the same one); its crop and caption are those it has anyway
        in this epoch.
        """
        others = len(self.order) - self.batch_size
        key = (self.seed, self.epoch, clip, _REPLACEMENT, attempt)
        if others == 0:
            at = int(integers(*key, high=len(self.order)))
        else:
            at = (self.first + self.batch_size + int(integers(*key, high=others))) % len(self.order)
        return self._draws(self.order[at : at + 1])[0]

    def _draws(self, clips: np.ndarray) -> list[Draw]:
        key = (self.seed, self.epoch, clips)
        drawn = (clips, mix(*key, _CROP), uniform(*key, _KIND), mix(*key, _CAPTION))
        return [Draw(*row) for row in zip(*(column.tolist() for column in drawn), strict=True)]


class Sampler:
    """The steps of all epochs: epoch e goes through a permutation of all clips keyed by (seed, e).

    What does not fill a global batch is left out of that epoch.
    """

    def __init__(self, clips: int, batch_size: int, seed: int) -> None:
        self.steps_per_epoch = clips // batch_size
        """Global batches in an epoch."""
        self._clips, self._batch_size, self._seed = clips, batch_size, seed
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def step(self, step: int) -> Step:
        """Step `step` (from 0) of the run."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, permutation(self._clips, self._seed, epoch, _ORDER))
        return Step(self._seed, epoch, self._order[1], at * self._batch_size, self._batch_size)
