"""Whether a WAV file is whole, where libsndfile's log has no room for what it found: it shortens a file in silence."""

import os
import struct
from pathlib import Path

_MAX_CHUNKS = 10_000


def riff_is_whole(path: Path, streamed: int) -> bool:
    """Whether the file has all bytes of its chunk of data, or that is `streamed` long or longer, which is no length."""
    size, at = os.path.getsize(path), 12
    with path.open("rb") as file:
        order = ">" if file.read(4) == b"RIFX" else "<"
        for _ in range(_MAX_CHUNKS):
            file.seek(at)
            header = file.read(8)
            if len(header) < 8:
                return False
            name, length = struct.unpack(f"{order}4sI", header)
            if name == b"data":
                return length >= streamed or at + 8 + length <= size
            at += 8 + length + length % 2
    return False
