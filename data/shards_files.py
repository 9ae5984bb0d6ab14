"""The files of a packed directory (format: see `shards`), read with nothing taken on trust.

An `.idx` is believed only as far as it must be true: members of its sizes, one after another, have to lie where it says
and fill the tar to its last byte; and whoever reads a member finds its header before it, and compares name and size.
"""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .audio import SAMPLE_RATE

FORMAT = "cacophony-shards"
VERSION = 2
INDEX_NAME = "index.json"
SIZES_NAME = "sizes.json"
MAX_RECORD_BYTES = 1 << 20
"""Size of a json member: what packing takes in stays below it."""
MAX_FLAC_BYTES = 1 << 28
"""Size of a flac member: an hour, not compressed at all, has half of it."""

BLOCK = tarfile.BLOCKSIZE
"""Bytes of a tar header; data are padded to a multiple."""

_SHARD_NAME = re.compile(r"shard-[0-9]{6,9}\.tar", re.ASCII)
_COUNTS = ("clips", "captions", "synthetic_captions", "captioned_clips")
_MAX_WORD = 100


def stray_files(folder: Path, index: dict[str, Any]) -> list[str]:
    """Shards, indices and half-written files that lie in `folder` and are not in its index, sorted."""
    known = {shard["name"] for shard in index["shards"]}
    known |= {f"{Path(name).stem}.idx" for name in known} | {INDEX_NAME, SIZES_NAME}
    found = (path.name for path in folder.iterdir() if path.suffix in (".tar", ".idx", ".tmp"))
    return sorted(name for name in found if name not in known)


def read_index(folder: Path) -> dict[str, Any]:
    """What `index.json` holds, in the form that `Shards` relies on.

    Raises `InputError` when `folder` is no packed directory, is of another version, or the index is malformed.
    """
    path = folder / INDEX_NAME
    try:
        index = json.loads(path.read_bytes())
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
    except OSError as error:
        raise InputError(f"{folder}: not a packed directory (no readable {INDEX_NAME}); run cacophony pack") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not the index of a packed directory ({error}); run cacophony pack") from error
    if index.get("version") != VERSION:
        raise InputError(
            f"{path}: version is {index.get('version')!r}; expected {VERSION}: pack again with this release"
        )
    problem = _index_problem(index)
    if problem:
        raise InputError(f"{path}: {problem}; pack again")
    return index


def _index_problem(index: dict[str, Any]) -> str:
    if index.get("sample_rate") != SAMPLE_RATE:
        return f"sample_rate is {index.get('sample_rate')!r}, expected {SAMPLE_RATE}"
    if not isinstance(index.get("fingerprint"), str) or not isinstance(index.get("seconds"), int | float):
        return "fingerprint or seconds is missing"
    shards = index.get("shards")
    if any(not isinstance(index.get(name), int) for name in _COUNTS) or not isinstance(shards, list) or not shards:
        return f"{', '.join(_COUNTS)} or shards is missing"
    for shard in shards:
        if not isinstance(shard, dict) or not _SHARD_NAME.fullmatch(str(shard.get("name"))):
            return "a shard has no name such as shard-000000.tar"
        if any(not isinstance(shard.get(name), int) or shard[name] < 1 for name in ("clips", "bytes")):
            return f"{shard['name']} has no clips or bytes"
    if len({shard["name"] for shard in shards}) != len(shards):
        return "a shard occurs twice"
    if sum(shard["clips"] for shard in shards) != index["clips"]:
        return "clips is not the sum over the shards"
    return ""


def is_header(block: bytes, name: bytes, size: int) -> bool:
    """Whether a tar header is the one of a regular file of this name and size, as `shard_writer` writes it."""
    return (
        block[: len(name) + 1] == name + b"\0"
        and block[124:136] == b"%011o\0" % size
        and block[156:157] == tarfile.REGTYPE
        and block[257:263] == b"ustar\0"
    )


def read_idx(tar: Path, shard: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Keys, bytes `[N]`, and (flac offset, flac size, json offset, json size), int64 `[N, 4]`, of one shard."""
    idx = tar.with_suffix(".idx")
    try:
        tar_bytes = tar.stat().st_size
        words = idx.read_bytes().split()
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; copy the shard again, or pack again") from error
    if tar_bytes != shard["bytes"]:
        raise InputError(f"{tar}: {tar_bytes} bytes, expected {shard['bytes']}; copy the shard again, or pack again")
    clips = shard["clips"]
    header = [b"v1.2", str(clips).encode()]
    if len(words) != 2 + 8 * clips or words[:2] != header or max(map(len, words)) > _MAX_WORD:
        raise InputError(f"{idx}: not an index of {clips} clips; copy the shard again, or pack again")
    columns = [words[at::8] for at in range(2, 10)]
    keys = [name.removesuffix(b".flac") for name in columns[3]]
    named = (
        all(map(bytes.isalnum, keys))
        and columns[0] == [b"flac"] * clips
        and columns[3] == [key + b".flac" for key in keys]
        and columns[4] == [b"json"] * clips
        and columns[7] == [key + b".json" for key in keys]
    )
    try:
        spans = np.array([list(map(int, columns[at])) for at in (1, 2, 5, 6)], np.int64).T
    except (ValueError, OverflowError):
        spans = np.zeros((0, 4), np.int64)
    if not (named and _tiles(spans, tar_bytes) and _ends_at(tar, int(spans[-1, 2:].sum()))):
        raise InputError(f"{idx}: not the index of its tar; copy the shard again, or pack again")
    return np.array(keys), spans


def _tiles(spans: np.ndarray, tar_bytes: int) -> bool:
    """Whether members of these sizes, header and padding each, lie where the spans say and fill a tar of that size."""
    sizes = spans[:, 1::2]
    if not len(sizes) or (sizes < 1).any() or (sizes > (MAX_FLAC_BYTES, MAX_RECORD_BYTES)).any():
        return False
    ends = np.cumsum(BLOCK + -(-sizes.ravel() // BLOCK) * BLOCK)
    starts = np.concatenate([[0], ends[:-1]]) + BLOCK
    end = int(ends[-1]) + 2 * BLOCK
    return bool((starts == spans[:, ::2].ravel()).all()) and end + -end % tarfile.RECORDSIZE == tar_bytes


def _ends_at(tar: Path, data_end: int) -> bool:
    """Whether nothing but zeros follows a tar's last member."""
    with tar.open("rb") as file:
        file.seek(data_end)
        return not any(file.read(tarfile.RECORDSIZE + 2 * BLOCK))
