"""JSON files: read with damage named, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from .errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises InputError where it is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds a {type(data).__name__}, expected a JSON object")
    return data


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
