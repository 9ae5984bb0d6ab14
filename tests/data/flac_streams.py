"""FLAC streams written bit by bit, with all that the format has and encoders seldom use (RFC 9639, sections 8, 9)."""

from collections.abc import Sequence
from dataclasses import dataclass

BLOCK_CODES = {192: 1} | {576 << i: 2 + i for i in range(4)} | {256 << i: 8 + i for i in range(8)}


class BitWriter:
    """Bits, most significant first."""

    def __init__(self) -> None:
        self._bits: list[str] = []

    def put(self, value: int, width: int) -> None:
        """Append the low `width` bits of a number, in two's complement where it is negative."""
        if width:
            self._bits.append(format(value & ((1 << width) - 1), f"0{width}b"))

    def put_unary(self, zeros: int) -> None:
        self._bits.append("0" * zeros + "1")

    def bytes(self) -> bytes:
        """All bits, with zeros up to a whole byte."""
        text = "".join(self._bits)
        text += "0" * (-len(text) % 8)
        return int(text or "0", 2).to_bytes(len(text) // 8, "big")


@dataclass(frozen=True)
class Residual:
    """How residuals are written."""

    method: int = 0
    """Rice parameters of 4 bits (0) or of 5 (1)."""
    partition_order: int = 0
    parameters: Sequence[int | None] = (0,)
    """Of the partitions in turns; None: the residuals as they are, in as many bits as the largest needs."""

    def put(self, bits: BitWriter, residuals: Sequence[int], order: int) -> None:
        length = (len(residuals) + order) >> self.partition_order
        bits.put(self.method, 2)
        bits.put(self.partition_order, 4)
        first = 0
        for partition in range(1 << self.partition_order):
            end = (partition + 1) * length - order
            parameter = self.parameters[partition % len(self.parameters)]
            self._put_partition(bits, residuals[first:end], parameter)
            first = end

    def _put_partition(self, bits: BitWriter, residuals: Sequence[int], parameter: int | None) -> None:
        width = 4 + self.method
        if parameter is None:
            needed = max((max(x, ~x).bit_length() + 1 for x in residuals if x), default=0)
            bits.put(-1, width)
            bits.put(needed, 5)
            for x in residuals:
                bits.put(x, needed)
            return
        bits.put(parameter, width)
        for x in residuals:
            code = 2 * x if x >= 0 else -2 * x - 1
            bits.put_unary(code >> parameter)
            bits.put(code, parameter)


@dataclass(frozen=True)
class Subframe:
    """How the samples of a frame are written."""

    kind: str = "verbatim"
    """constant, verbatim, fixed or lpc."""
    order: int = 0
    coefficients: Sequence[int] = ()
    """Of lpc: of the sample before, of the one before that, …; as many as the order."""
    precision: int = 15
    shift: int = 0
    residual: Residual = Residual()
    wasted: int = 0
    """Zero bits at the end of every sample."""

    def put(self, bits: BitWriter, samples: Sequence[int], width: int) -> None:
        code = {"constant": 0, "verbatim": 1, "fixed": 8 + self.order, "lpc": 31 + self.order}[self.kind]
        bits.put(0, 1)
        bits.put(code, 6)
        bits.put(self.wasted > 0, 1)
        if self.wasted:
            bits.put_unary(self.wasted - 1)
        samples, width = [x >> self.wasted for x in samples], width - self.wasted
        for x in samples[: {"constant": 1, "verbatim": len(samples)}.get(self.kind, self.order)]:
            bits.put(x, width)
        if self.kind == "lpc":
            bits.put(self.precision - 1, 4)
            bits.put(self.shift, 5)
            for coefficient in self.coefficients:
                bits.put(coefficient, self.precision)
        if self.kind in ("fixed", "lpc"):
            self.residual.put(bits, self.residuals(samples), self.order)

    def residuals(self, samples: Sequence[int]) -> list[int]:
        """What prediction leaves of samples."""
        weights = (
            ([], [1], [2, -1], [3, -3, 1], [4, -6, 4, -1])[self.order] if self.kind == "fixed" else self.coefficients
        )
        return [
            samples[t] - (sum(c * samples[t - 1 - i] for i, c in enumerate(weights)) >> self.shift)
            for t in range(self.order, len(samples))
        ]


def crc(data: bytes, polynomial: int, width: int) -> int:
    """The remainder of `data` and `width` zero bits."""
    value = 0
    for byte in data:
        value ^= byte << (width - 8)
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (width - 1) else 0)
    return value


def coded_number(number: int) -> bytes:
    """A number as UTF-8 would hold it, up to 36 bits."""
    if number < 0x80:
        return bytes([number])
    extra = next(n for n in range(1, 7) if number < 1 << (6 * n + max(0, 6 - n)))
    head = (0xFF00 >> (extra + 1)) & 0xFF | number >> (6 * extra)
    return bytes([head, *(0x80 | number >> (6 * i) & 0x3F for i in reversed(range(extra)))])


def frame(
    samples: Sequence[int],
    number: int,
    subframe: Subframe,
    *,
    by_sample: bool = False,
    bits: int = 16,
    rate_code: int = 5,
    bits_code: int | None = None,
    channels_code: int = 0,
    short_block_code: bool = True,
) -> bytes:
    """A frame of one channel, `number` its place in frames, or in samples where blocks differ (`by_sample`)."""
    block, header = len(samples), BitWriter()
    code = BLOCK_CODES.get(block, 0) if short_block_code else 0
    code = code or (6 if block <= 256 and short_block_code else 7)
    header.put(0xFFF8 | by_sample, 16)
    header.put(code, 4)
    header.put(rate_code, 4)
    header.put(channels_code, 4)
    header.put({8: 1, 16: 4, 24: 6}[bits] if bits_code is None else bits_code, 3)
    header.put(0, 1)
    data = header.bytes() + coded_number(number)
    data += (block - 1).to_bytes(code - 5, "big") if code in (6, 7) else b""
    data += {12: b"\x10", 13: (16_000).to_bytes(2, "big"), 14: (1_600).to_bytes(2, "big")}.get(rate_code, b"")
    data += bytes([crc(data, 0x107, 8)])
    body = BitWriter()
    subframe.put(body, samples, bits)
    data += body.bytes()
    return data + crc(data, 0x18005, 16).to_bytes(2, "big")


def stream(
    frames: Sequence[bytes],
    total: int,
    *,
    blocks: tuple[int, int] = (4096, 4096),
    bits: int = 16,
    rate: int = 16_000,
    channels: int = 1,
    metadata: Sequence[tuple[int, bytes]] = (),
) -> bytes:
    """A stream that declares `total` samples, with further metadata blocks (type, content)."""
    info = BitWriter()
    values = (*blocks, 0, 0, rate, channels - 1, bits - 1, total, 0)
    for value, width in zip(values, (16, 16, 24, 24, 20, 3, 5, 36, 128), strict=True):
        info.put(value, width)
    parts = [(0, info.bytes()), *metadata]
    head = b"fLaC"
    for i, (kind, content) in enumerate(parts):
        head += bytes([kind | 0x80 * (i == len(parts) - 1)]) + len(content).to_bytes(3, "big") + content
    return head + b"".join(frames)
