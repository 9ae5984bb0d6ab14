"""Freed memory goes back to the system."""

from pathlib import Path

import pytest
from cacophony.engine.host_memory import give_back

BLOCK, BLOCKS = 2000, 30_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' resident set size")
def test_freed_blocks_between_used_ones_go_back() -> None:
    """Every hundredth block stays, so nothing is free at the end of the heap."""

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    blocks = [bytes(BLOCK) for _ in range(BLOCKS)]
    kept = blocks[::100]
    full = resident_bytes()
    del blocks
    give_back()
    assert full - resident_bytes() > 0.7 * BLOCK * BLOCKS
    assert len(kept) == BLOCKS // 100
