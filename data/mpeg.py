"""How much audio an MP3 file holds: where no header says it, libsndfile guesses, and leaves out what is beyond."""

from pathlib import Path
from typing import BinaryIO, NamedTuple

# kbit/s of layer III by the header's four bits; 0: none that is known.
_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_RATES = (44_100, 48_000, 32_000, 0)  # Hz of MPEG 1; half of that of MPEG 2, a quarter of MPEG 2.5
_DIVISORS = {3: 1, 2: 2, 0: 4}  # by the header's version
_SEARCHED = 1 << 16  # bytes before the first frame


class _Frame(NamedTuple):
    bytes: int
    samples: int


def mpeg_samples(path: Path, enough: int) -> int:
    """Samples of each channel in the layer III frames that follow one another from the first on, by their headers.

    The count ends above `enough`, and where something else comes than a frame or an ID3 tag. 0 where no frame is found.
    """
    samples = 0
    with path.open("rb") as file:
        at = _first_frame(file)
        while samples <= enough:
            file.seek(at)
            head = file.read(10)
            frame = _frame(head)
            if frame is not None:
                samples += frame.samples
                at += frame.bytes
            elif head[:3] == b"ID3":
                at += _tag_bytes(head)
            else:
                break
    return samples


def _first_frame(file: BinaryIO) -> int:
    """The byte of the first header behind tags that is followed by another."""
    at = 0
    while (head := file.read(10))[:3] == b"ID3":
        at += _tag_bytes(head)
        file.seek(at)
    file.seek(at)
    data = file.read(2 * _SEARCHED)
    found = data.find(b"\xff")
    while 0 <= found < _SEARCHED:
        frame = _frame(data[found : found + 4])
        if frame is not None and _frame(data[found + frame.bytes : found + frame.bytes + 4]) is not None:
            return at + found
        found = data.find(b"\xff", found + 1)
    return at


def _frame(head: bytes) -> _Frame | None:
    """What a header of layer III says; None where it is none, or of a free bit rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    divisor = _DIVISORS.get(head[1] >> 3 & 3)
    if divisor is None:
        return None
    kbits = (_KBITS_1 if divisor == 1 else _KBITS_2)[head[2] >> 4]
    rate = _RATES[head[2] >> 2 & 3] // divisor
    if not kbits or not rate:
        return None
    samples = 1_152 if divisor == 1 else 576
    return _Frame(samples // 8 * kbits * 1_000 // rate + (head[2] >> 1 & 1), samples)


def _tag_bytes(head: bytes) -> int:
    """Bytes of an ID3v2 tag, its header of ten included."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + 10 * bool(head[5:6] and head[5] & 0x10)
