"""A mix as packing sees it."""

from pathlib import Path

from ...errors import InputError
from ...json_file import read_json
from ..corpus import Candidate, captioned
from .manifest import FORMAT, MANIFEST_NAME, Manifest, read_manifest
from .mix import STAGE

_MAX_BYTES = 1 << 26


def is_manifest(folder: Path) -> bool:
    """Whether a folder holds a manifest: any corpus may have a file of that name."""
    path = folder / MANIFEST_NAME
    try:
        return path.is_file() and path.stat().st_size < _MAX_BYTES and read_json(path).get("format") == FORMAT
    except InputError:
        return False


def read_mix(folder: Path) -> tuple[list[Candidate], Manifest]:
    """The clips of a mix, in its order, each called `<source>/<id>`; raises `InputError` for another manifest."""
    manifest = read_manifest(folder)
    if manifest.stage != STAGE:
        raise InputError(
            f"{folder}: the result of {manifest.stage!r:.40}, whose texts need not be captions; "
            f"make a mix of it with cacophony curate mix"
        )
    return [
        captioned(f"{row['source']}/{row['id']}", row["path"], row["texts"], row["synthetic_text"]) for row in manifest
    ], manifest
