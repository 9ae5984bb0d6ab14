"""Counting the members that an epoch could not use, naming each once, and stopping a run that has too many of them."""

import logging
from collections import Counter
from collections.abc import Iterable

from ..errors import InputError
from .shards import DamagedMember, source_of

_log = logging.getLogger(__name__)


class DamageCount:
    """The damaged members that this process has met since it began."""

    def __init__(self, reads_per_epoch: int, max_share: float) -> None:
        """An epoch may replace up to `max_share` of the `reads_per_epoch` clips that this process hands out in it."""
        self.by_source: Counter[str] = Counter()
        """Damaged members of each source: the first folder of the packed path, "." for files that lay in none."""
        self._reads_per_epoch = reads_per_epoch
        self._max_share = max_share
        self._named: set[int] = set()
        self._epoch = -1
        self._in_epoch: set[int] = set()

    def add(self, epoch: int, members: Iterable[DamagedMember]) -> None:
        """Count and name the members that a step of `epoch` replaced.

        Raises `InputError` when the epoch's damaged members exceed the share.
        """
        if epoch != self._epoch:
            self._epoch, self._in_epoch = epoch, set()
        for member in members:
            self._in_epoch.add(member.index)
            if member.index not in self._named:
                self._named.add(member.index)
                self.by_source[source_of(member.clip_source)] += 1
                _log.warning("%s: replaced by another clip; pack again", member.what)
        if len(self._in_epoch) > self._max_share * self._reads_per_epoch:
            raise InputError(
                f"{len(self._in_epoch)} damaged members among the {self._reads_per_epoch} clips of an epoch, more than "
                f"data.max_bad_share ({self._max_share:g}) allows ({self.summary()}); pack again, or raise it"
            )

    def summary(self) -> str:
        """The counts in words, the largest first; empty where nothing was damaged."""
        return ", ".join(f"{source}: {count}" for source, count in self.by_source.most_common())
