"""What a worker says of a file of which only the length is asked."""

from pathlib import Path

import numpy as np
import soundfile as sf
from cacophony.data import encode


def test_a_stream_of_undeclared_length_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "stream.flac"
    sf.write(path, np.zeros(24_000), 16_000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO: 36 bits of total samples, 0 for unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)

    assert encode.probe(str(path)) == ({"seconds": 1.5, "reason": ""}, b"")
