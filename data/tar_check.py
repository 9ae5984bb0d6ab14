"""Checking one shard: every header, name, record and sample, against the index and against itself.

The FLAC encoder leaves the MD5 of the samples in the stream's header (STREAMINFO, RFC 9639, section 8.2); decoders do
not look at it. Here it is compared, and it serves as the hash by which duplicates are found.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .audio import SAMPLE_RATE, AudioError, decode_flac_int16
from .captions import usable_captions
from .shard_writer import sha256_of
from .shards import source_of
from .shards_files import MAX_FLAC_BYTES, MAX_RECORD_BYTES
from .tar_members import Member, members

DIGESTS = struct.Struct("32s16s")
"""Per clip, in order: SHA-256 of its two members, MD5 of its samples (zeros where they cannot be decoded)."""

_MD5_AT = 26
_FIELDS = ("samples", "sample_rate", "duration", "source", "flac_crc32", "text", "synthetic_text")
_COUNTS = ("clips", "samples", "captions", "synthetic", "captioned")


class _BadRecord(Exception):
    """What is wrong with the record of a clip."""


@dataclass
class _Findings:
    """What was found in a shard so far."""

    problems: list[tuple[str, str, str]] = field(default_factory=list)
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)

    def problem(self, reason: str, member: str = "", source: str = "") -> None:
        self.problems.append((member, reason, source))

    def count(self, source: str, record: dict[str, Any]) -> None:
        captions, synthetic = len(record["text"]), len(record["synthetic_text"])
        counts = self.sources.setdefault(source, dict.fromkeys(_COUNTS, 0))
        for name, number in zip(
            _COUNTS, (1, record["samples"], captions, synthetic, captions + synthetic > 0), strict=True
        ):
            counts[name] += number


def check_shard(folder: str, shard: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Everything that is wrong with a shard, as `problems`, and its `sources`: the counts of each source's clips.

    `shard` is its entry in `index.json`. `problems` is a list of (member or "", what is wrong, source or ""); the bytes
    are the `DIGESTS` of the clips. A shard without problems has exactly the clips that its entry and its `.idx` say.
    """
    tar = Path(folder) / shard["name"]
    found = _Findings()
    try:
        _check_file(tar, shard, found)
        there = list(members(tar))
        _check_idx(tar.with_suffix(".idx"), there, found)
        with tar.open("rb") as file:
            for flac, record in _clips(there, found):
                file.seek(flac.offset)
                audio = file.read(flac.size)
                file.seek(record.offset)
                _check_clip(flac.name, audio, record.name, file.read(record.size), found)
    except OSError as error:
        found.problem(str(error.strerror))
    if len(found.digests) != shard["clips"]:
        found.problem(f"{len(found.digests)} clips, expected {shard['clips']}")
    return {"problems": found.problems, "sources": found.sources}, b"".join(found.digests)


def _check_file(tar: Path, shard: dict[str, Any], found: _Findings) -> None:
    size = tar.stat().st_size
    if size != shard["bytes"]:
        found.problem(f"{size} bytes, expected {shard['bytes']}: half written or another shard")
    elif sha256_of(tar) != shard.get("sha256"):
        found.problem("its bytes are not those that were packed (SHA-256)")


def _check_idx(idx: Path, there: list[Member], found: _Findings) -> None:
    expected = [f"v1.2 {len(there) // 2}"]
    for flac, record in zip(there[::2], there[1::2], strict=False):
        parts = [f"flac {flac.offset} {flac.size} {flac.name}", f"json {record.offset} {record.size} {record.name}"]
        expected.append(" ".join(parts))
    try:
        lines = idx.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        found.problem(f"{idx.name}: {error.strerror}")
        return
    wrong = sum(a != b for a, b in zip_longest(lines, expected))
    if wrong:
        found.problem(f"{idx.name} disagrees with the tar in {wrong} of {len(expected)} lines")


def _clips(there: list[Member], found: _Findings) -> Iterator[tuple[Member, Member]]:
    """Pairs of members that are a clip; what is none is a problem."""
    at = 0
    while at < len(there):
        flac, record = there[at], there[at + 1] if at + 1 < len(there) else None
        key = flac.name.removesuffix(".flac")
        if flac.problem or record is None or (flac.name, record.name) != (f"{key}.flac", f"{key}.json"):
            found.problem(flac.problem or "not a member <key>.flac followed by <key>.json", flac.name)
            at += 1
            continue
        if record.problem:
            found.problem(record.problem, record.name)
        elif flac.size > MAX_FLAC_BYTES or record.size > MAX_RECORD_BYTES:
            found.problem(f"over {MAX_FLAC_BYTES} bytes, or {MAX_RECORD_BYTES} in its json", flac.name)
        else:
            yield flac, record
        at += 2


def _check_clip(flac: str, audio: bytes, record: str, text: bytes, found: _Findings) -> None:
    source, samples, pcm = "", 0, bytes(16)
    try:
        said = _check_record(text)
        source, samples = source_of(said["source"]), said["samples"]
        found.count(source, said)
        if said["flac_crc32"] != zlib.crc32(audio):
            found.problem("its bytes are not those that were packed (CRC-32)", flac, source)
    except _BadRecord as error:
        found.problem(str(error), record)
    try:
        wave = decode_flac_int16(audio)
        pcm = hashlib.md5(wave.astype("<i2", copy=False).tobytes(), usedforsecurity=False).digest()
        if samples and len(wave) != samples:
            found.problem(f"{len(wave)} samples, its record says {samples}", flac, source)
        if audio[_MD5_AT : _MD5_AT + 16] not in (pcm, bytes(16)):
            found.problem("its samples are not those that were encoded (MD5)", flac, source)
    except AudioError as error:
        found.problem(error.reason, flac, source)
    found.digests.append(DIGESTS.pack(hashlib.sha256(audio + text).digest(), pcm))


def _check_record(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
        samples, rate, duration, source, _, written, synthetic = (record[name] for name in _FIELDS)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _BadRecord("not the record of a clip") from None
    if rate != SAMPLE_RATE:
        raise _BadRecord(f"sample_rate is {rate!r:.40}, expected {SAMPLE_RATE}")
    if not isinstance(samples, int) or samples < 1 or duration != samples / SAMPLE_RATE:
        raise _BadRecord(f"samples {samples!r:.40} and duration {duration!r:.40} do not fit")
    if not isinstance(source, str) or not source:
        raise _BadRecord("no source")
    for texts in (written, synthetic):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise _BadRecord("text or synthetic_text is no list of strings")
    dropped = usable_captions(written + synthetic).dropped
    if dropped:
        raise _BadRecord(dropped[0])
    return record
