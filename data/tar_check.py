"""Checking one shard: every header, name, record and sample, against the index and against itself.

The FLAC encoder leaves the MD5 of the samples in the stream's header (STREAMINFO, RFC 9639, section 8.2); decoders do
not look at it. Here it is compared, and it serves as the hash by which duplicates are found.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .audio import SAMPLE_RATE, AudioError, decode_flac_int16
from .captions import usable_captions
from .damage import source_of
from .shard_writer import sha256_of
from .shards_files import MAX_FLAC_BYTES, MAX_RECORD_BYTES
from .tar_members import Member, members

DIGESTS = struct.Struct("32s16s")
"""Per clip, in order: SHA-256 of its two members, MD5 of its samples (zeros where they cannot be decoded)."""

_MD5_AT = 26
_NOT_A_CLIP = "not a member <key>.flac followed by <key>.json"


class _BadMember(Exception):
    """What is wrong with a member."""


def check_shard(folder: str, shard: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Everything that is wrong with a shard, as `problems`, and its `sources`: the counts of each source's clips.

    `shard` is its entry in `index.json`. `problems` is a list of (member or "", what is wrong, source or ""); the bytes
    are the `DIGESTS` of the clips. A shard without problems has exactly the clips that its entry and its `.idx` say.
    """
    tar = Path(folder) / shard["name"]
    problems: list[tuple[str, str, str]] = []
    sources: dict[str, dict[str, int]] = {}
    digests: list[bytes] = []
    try:
        problems += [("", problem, "") for problem in _file_problems(tar, shard)]
        found = list(members(tar))
        problems += [("", problem, "") for problem in _idx_problems(tar, found)]
        with tar.open("rb") as file:
            for flac, record in _pairs(found, problems):
                data = {}
                for member in (flac, record):
                    file.seek(member.offset)
                    data[member] = file.read(member.size)
                digests.append(_check_clip(flac, data[flac], record, data[record], problems, sources))
    except OSError as error:
        problems.append(("", str(error.strerror), ""))
    if len(digests) != shard["clips"]:
        problems.append(("", f"{len(digests)} clips, expected {shard['clips']}", ""))
    return {"problems": problems, "sources": sources}, b"".join(digests)


def _file_problems(tar: Path, shard: dict[str, Any]) -> Iterator[str]:
    size = tar.stat().st_size
    if size != shard["bytes"]:
        yield f"{size} bytes, expected {shard['bytes']}: half written or another shard"
    elif sha256_of(tar) != shard.get("sha256"):
        yield "its bytes are not those that were packed (SHA-256)"


def _idx_problems(tar: Path, found: list[Member]) -> Iterator[str]:
    lines = [f"v1.2 {len(found) // 2}"]
    for flac, record in zip(found[::2], found[1::2], strict=False):
        parts = [f"flac {flac.offset} {flac.size} {flac.name}", f"json {record.offset} {record.size} {record.name}"]
        lines.append(" ".join(parts))
    idx = tar.with_suffix(".idx")
    try:
        text = idx.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        yield f"{idx.name}: {error.strerror}"
        return
    there = text.splitlines()
    wrong = sum(a != b for a, b in zip(there, lines, strict=False)) + abs(len(there) - len(lines))
    if wrong:
        yield f"{idx.name} disagrees with the tar in {wrong} of {len(lines)} lines"


def _pairs(found: list[Member], problems: list[tuple[str, str, str]]) -> Iterator[tuple[Member, Member]]:
    """Members that are a clip; what is none is a problem."""
    at = 0
    while at < len(found):
        flac, record = found[at], found[at + 1] if at + 1 < len(found) else None
        key = flac.name.removesuffix(".flac")
        is_clip = record is not None and flac.name == f"{key}.flac" and record.name == f"{key}.json"
        if flac.problem or not is_clip:
            problems.append((flac.name, flac.problem or _NOT_A_CLIP, ""))
            at += 1
            continue
        assert record is not None
        if record.problem or flac.size > MAX_FLAC_BYTES or record.size > MAX_RECORD_BYTES:
            limits = f"over {MAX_FLAC_BYTES} bytes of flac or {MAX_RECORD_BYTES} bytes of json"
            problems.append((flac.name, record.problem or limits, ""))
        else:
            yield flac, record
        at += 2


def _check_clip(
    flac: Member,
    audio: bytes,
    record: Member,
    text: bytes,
    problems: list[tuple[str, str, str]],
    sources: dict[str, dict[str, int]],
) -> bytes:
    source, samples, pcm = "", 0, bytes(16)
    try:
        said = _check_record(text)
        source, samples = source_of(said["source"]), said["samples"]
        if said["flac_crc32"] != zlib.crc32(audio):
            problems.append((flac.name, "its bytes are not those that were packed (CRC-32)", source))
        counts = sources.setdefault(source, {"clips": 0, "samples": 0, "captions": 0, "synthetic": 0, "captioned": 0})
        counts["clips"] += 1
        counts["samples"] += samples
        counts["captions"] += len(said["text"])
        counts["synthetic"] += len(said["synthetic_text"])
        counts["captioned"] += bool(said["text"] or said["synthetic_text"])
    except _BadMember as error:
        problems.append((record.name, str(error), ""))
    try:
        wave = decode_flac_int16(audio)
        pcm = hashlib.md5(wave.astype("<i2", copy=False).tobytes(), usedforsecurity=False).digest()
        if samples and len(wave) != samples:
            problems.append((flac.name, f"{len(wave)} samples, its record says {samples}", source))
        if audio[_MD5_AT : _MD5_AT + 16] not in (pcm, bytes(16)):
            problems.append((flac.name, "its samples are not those that were encoded (MD5)", source))
    except AudioError as error:
        problems.append((flac.name, error.reason, source))
    return DIGESTS.pack(hashlib.sha256(audio + text).digest(), pcm)


def _check_record(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
        texts = [record["text"], record["synthetic_text"]]
        samples, rate, source = record["samples"], record["sample_rate"], record["source"]
        duration, _ = record["duration"], record["flac_crc32"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _BadMember("not the record of a clip") from None
    if rate != SAMPLE_RATE:
        raise _BadMember(f"sample_rate is {rate!r:.40}, expected {SAMPLE_RATE}")
    if not isinstance(samples, int) or samples < 1 or duration != samples / SAMPLE_RATE:
        raise _BadMember(f"samples {samples!r:.40} and duration {duration!r:.40} do not fit")
    if not isinstance(source, str) or not source:
        raise _BadMember("no source")
    if not all(isinstance(kind, list) and all(isinstance(text, str) for text in kind) for kind in texts):
        raise _BadMember("text or synthetic_text is no list of strings")
    dropped = usable_captions(texts[0] + texts[1]).dropped
    if dropped:
        raise _BadMember(dropped[0])
    return record
