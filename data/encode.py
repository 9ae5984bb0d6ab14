"""The work on one piece of audio that is given to processes: decode, resample, encode, read captions; or probe."""

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from .audio import NOT_OPENED, SAMPLE_RATE, AudioError, check_seconds, encode_flac_int16, probe_seconds, read_audio
from .sidecar import MAX_BYTES, read_sidecar

MIN_SECONDS = 1.0
MAX_SECONDS = 300.0
MAX_MEMBER_BYTES = 1 << 31
"""Size of an audio member of a tar that is read: 300 s of 8 channels at 192 kHz in 32 bits are 1.8 GB."""

LARGE_MEMBER = f"tar member over {MAX_MEMBER_BYTES} bytes"
_COPY_BYTES = 1 << 20


def encode(
    name: str, audio: tuple[str, int, int], sidecar: tuple[str, int, int] | None, scratch: str
) -> tuple[dict[str, Any], bytes]:
    """FLAC bytes (none where there is a `reason`), and `samples`, `reason`, `captions`, `dropped`.

    `audio` and `sidecar` are path, offset and size (-1: the whole file); `scratch` is a folder for a temporary file.
    """
    values: dict[str, Any] = {"samples": 0, "reason": "", "captions": [], "dropped": []}
    try:
        if sidecar is not None:
            said = read_sidecar(b"".join(_blocks(*sidecar, limit=MAX_BYTES + 1)))
            values |= {"captions": said.captions.texts, "dropped": said.captions.dropped, "reason": said.defect}
        if values["reason"]:
            return values, b""
        wave = _decode(name, audio, scratch)
    except AudioError as error:
        return values | {"reason": error.reason}, b""
    return values | {"samples": len(wave)}, encode_flac_int16(wave)


def probe(path: str) -> tuple[dict[str, Any], bytes]:
    """`seconds` that the header declares, and the `reason` why the file cannot be packed, as far as the header tells.

    Only where the header declares no length is the file decoded. No bytes.
    """
    try:
        seconds = probe_seconds(path)
        if math.isinf(seconds):
            seconds = len(read_audio(path, max_seconds=MAX_SECONDS)) / SAMPLE_RATE
        check_seconds(path, seconds, MIN_SECONDS, MAX_SECONDS)
    except AudioError as error:
        return {"seconds": 0.0, "reason": error.reason}, b""
    return {"seconds": seconds, "reason": ""}, b""


def _decode(name: str, audio: tuple[str, int, int], scratch: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    path, _, size = audio
    if size < 0:
        return read_audio(path, min_seconds=MIN_SECONDS, max_seconds=MAX_SECONDS)
    if size > MAX_MEMBER_BYTES:
        raise AudioError(name, LARGE_MEMBER)
    # A file of its own, because every check of `read_audio` looks at a whole file.
    with tempfile.NamedTemporaryFile(dir=scratch, suffix=PurePosixPath(name).suffix) as copy:
        for block in _blocks(*audio, limit=size):
            copy.write(block)
        copy.flush()
        return read_audio(copy.name, min_seconds=MIN_SECONDS, max_seconds=MAX_SECONDS)


def _blocks(path: str, offset: int, size: int, limit: int) -> Iterator[bytes]:
    """The bytes of a file, or of a part of it, at most `limit`; raises `AudioError` where they cannot be read."""
    left = limit if size < 0 else min(size, limit)
    if not os.path.isfile(path):  # a pipe would be waited for
        raise AudioError(path, NOT_OPENED)
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            while left > 0 and (block := file.read(min(left, _COPY_BYTES))):
                left -= len(block)
                yield block
    except OSError as error:
        raise AudioError(path, NOT_OPENED) from error
