"""Shared by the loaders' tests: small shards with captions of two sources, copies that are damaged, both loaders."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cacophony.data.audio import encode_flac_int16
from cacophony.data.dali import dali_problem
from cacophony.data.dali_decoder import DaliDecoder
from cacophony.data.loader import Loader, LoaderConfig
from cacophony.data.shard_writer import ShardWriter
from cacophony.data.shards import Shards
from cacophony.data.shards_files import FORMAT, VERSION
from cacophony.data.tokens import CaptionTokenizer

TOKENIZER = CaptionTokenizer.train(["caption of clip 0 1 2 3 4 5 6 7 8 9"], 300)
CLIPS_PER_SHARD = 100

PATHS = [
    "native",
    pytest.param("dali", marks=pytest.mark.skipif(bool(dali_problem()), reason=dali_problem() or "DALI is here")),
]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    """Who decodes."""
    return request.param


def write_shards(folder: Path, flacs: list[bytes], samples: list[int]) -> Path:
    """Shards of these members, two of three from source "sea", the others from "land"."""
    folder.mkdir()
    shards, digests = [], []
    for first in range(0, len(flacs), CLIPS_PER_SHARD):
        name = f"shard-{first // CLIPS_PER_SHARD:06d}.tar"
        with ShardWriter(folder / name) as writer:
            for i in range(first, min(first + CLIPS_PER_SHARD, len(flacs))):
                record = {
                    "text": [f"caption {n} of clip {i}" for n in range(2)],
                    "synthetic_text": [],
                    "sample_rate": 16_000,
                    "samples": samples[i],
                    "source": f"{'sea' if i % 3 else 'land'}/{i}.wav",
                }
                writer.add(f"{i:06d}", flacs[i], record)
            size, _ = writer.commit()
        digests += writer.clip_digests
        shards.append({"name": name, "clips": len(writer.clip_digests), "bytes": size})
    counts = {"clips": len(flacs), "captions": 2 * len(flacs), "synthetic_captions": 0, "captioned_clips": len(flacs)}
    index = {"format": FORMAT, "version": VERSION, "sample_rate": 16_000, "seconds": sum(samples) / 16_000}
    index |= counts | {"fingerprint": digests[0], "shards": shards}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def noise(samples: list[int]) -> list[bytes]:
    """FLAC members of random waves."""
    rng = np.random.default_rng(len(samples))
    return [encode_flac_int16(rng.integers(-9_999, 9_999, n).astype(np.int16)) for n in samples]


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """330 clips of 0.05 to 0.5 seconds."""
    samples = np.random.default_rng(1).integers(800, 8_000, 330).tolist()
    return write_shards(tmp_path_factory.mktemp("many") / "shards", noise(samples), samples)


@pytest.fixture
def write_members() -> Callable[[Path, list[int], list[int]], Path]:
    """Write shards of clips of these lengths, some of them cut in the middle before they were packed."""

    def write(folder: Path, samples: list[int], cut: list[int]) -> Path:
        flacs = noise(samples)
        return write_shards(folder, [f[: len(f) // 2] if i in cut else f for i, f in enumerate(flacs)], samples)

    return write


@pytest.fixture
def damaged(many: Path, tmp_path: Path) -> Callable[[dict[int, str]], Path]:
    """A copy of `many` in which these clips were damaged after packing: truncated, zero-length, flipped or json."""

    def copy(kinds: dict[int, str]) -> Path:
        out = shutil.copytree(many, tmp_path / "damaged")
        for i, kind in kinds.items():
            tar = out / f"shard-{i // CLIPS_PER_SHARD:06d}.tar"
            words = tar.with_suffix(".idx").read_text().splitlines()[1 + i % CLIPS_PER_SHARD].split(" ")
            offset, size = int(words[1]), int(words[2])
            data = bytearray(tar.read_bytes())
            if kind in ("truncated", "zero-length"):  # a tar keeps its size: what is lost reads as zeros
                kept = size // 2 if kind == "truncated" else 0
                data[offset + kept : offset + size] = bytes(size - kept)
            else:
                # The last bytes of a member: a damaged last frame is one that DALI decodes without a word.
                data[offset + size - 20 if kind == "flipped" else int(words[5])] ^= 4
            tar.write_bytes(data)
        return out

    return copy


@pytest.fixture
def make_loader() -> Iterator[Callable[..., Loader]]:
    """Make a loader that decodes by a path and is closed with the test."""
    loaders: list[Loader] = []

    def make(
        shards: Path, path: str, rank: int = 0, world: int = 1, sources: Sequence[str] = (), **values: Any
    ) -> Loader:
        defaults = {"batch_size": 8, "crop_seconds": 0.2, "max_text_tokens": 20, "seed": 5, "workers": 2}
        config = LoaderConfig(**{**defaults, **values})
        decoder = DaliDecoder(config.workers) if path == "dali" else None
        loaders.append(Loader(Shards.open(shards, sources), config, TOKENIZER, rank, world, decoder))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()
