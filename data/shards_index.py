"""The two files that describe a packed directory as a whole, summed up shard by shard (format: see `shards`)."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .audio import SAMPLE_RATE
from .shard_writer import write_atomically
from .shards_files import FORMAT, INDEX_NAME, SIZES_NAME, VERSION


@dataclass
class ShardTotals:
    """What is counted of the clips of a shard, or of several."""

    samples: int = 0
    captions: int = 0
    synthetic_captions: int = 0
    captioned_clips: int = 0

    def add(self, samples: int, captions: int, synthetic_captions: int) -> None:
        """Count one clip."""
        self.samples += samples
        self.captions += captions
        self.synthetic_captions += synthetic_captions
        self.captioned_clips += captions + synthetic_captions > 0

    def add_all(self, other: "ShardTotals") -> None:
        """Count the clips of another shard."""
        self.samples += other.samples
        self.captions += other.captions
        self.synthetic_captions += other.synthetic_captions
        self.captioned_clips += other.captioned_clips


class ShardIndex:
    """`index.json` and `sizes.json` of the shards that are added, in their order."""

    def __init__(self) -> None:
        self.shards: list[dict[str, Any]] = []
        self.totals = ShardTotals()
        self._fingerprint = hashlib.sha256()

    def add(self, shard: dict[str, Any], totals: ShardTotals, clip_digests: Iterable[str]) -> None:
        """Append a shard: its entry in the index, its counts, and the digest of each clip."""
        self.shards.append(shard)
        self.totals.add_all(totals)
        self._fingerprint.update("".join(clip_digests).encode())

    @property
    def clips(self) -> int:
        """Clips in all shards."""
        return sum(shard["clips"] for shard in self.shards)

    def content(self) -> dict[str, Any]:
        """What `index.json` holds."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "sample_rate": SAMPLE_RATE,
            "clips": self.clips,
            "captions": self.totals.captions,
            "synthetic_captions": self.totals.synthetic_captions,
            "captioned_clips": self.totals.captioned_clips,
            "seconds": self.totals.samples / SAMPLE_RATE,
            "fingerprint": self._fingerprint.hexdigest(),
            "shards": self.shards,
        }

    def write(self, folder: Path) -> None:
        """Write both files into `folder`."""
        write_atomically(folder / SIZES_NAME, json.dumps(self.sizes()).encode())
        write_atomically(folder / INDEX_NAME, json.dumps(self.content(), indent=1).encode())

    def sizes(self) -> dict[str, int]:
        """What `sizes.json` holds."""
        return {shard["name"]: shard["clips"] for shard in self.shards}


def shard_entry(name: str, clips: int, samples: int, size: int, sha256: str) -> dict[str, Any]:
    """What `index.json` says of one shard."""
    return {"name": name, "clips": clips, "seconds": samples / SAMPLE_RATE, "bytes": size, "sha256": sha256}


def shard_name(number: int) -> str:
    """`shard-000000.tar` and so on."""
    return f"shard-{number:06d}.tar"


def refuse_full(target: Path) -> None:
    """Raise `InputError` unless a finished directory can be moved to `target`."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: already there and not empty; give another directory or remove it")
    if os.path.ismount(target.resolve()):
        raise InputError(f"{target}: is a mount point, which no directory can replace; give a directory in it")
