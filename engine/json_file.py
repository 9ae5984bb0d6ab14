"""JSON files that appear whole or not at all."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON under a temporary name, then rename it to ``path``."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def check_writable(path: Path) -> None:
    """Raise InputError where a file cannot be created at ``path``."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory; expected the name of a file to write")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent}: no such directory; create it first")
