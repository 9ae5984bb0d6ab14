"""``python -m cacophony.bench all``: the bench without the front door, for machines with few packages."""

import argparse
import sys
from pathlib import Path

from ..errors import InputError
from .all import bench_all


def main() -> int:
    """Run one command; returns the exit code: 0, 1 (a part failed), 2 (the input was wrong)."""
    parser = argparse.ArgumentParser(prog="python -m cacophony.bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="all")
    everything = commands.add_parser("all", help="tests on the GPU, roofs, ops and steps, within ten minutes")
    everything.add_argument("--json", type=Path, required=True, help="file to write; a .md and a .png go beside it")
    everything.add_argument("--quick", action="store_true", help="less of everything, within two minutes")
    everything.add_argument("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU where there is one")
    asked = parser.parse_args()
    try:
        return bench_all(asked.json, quick=asked.quick, device=asked.device)
    except InputError as error:
        print(f"cacophony: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
