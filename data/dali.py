"""Whether NVIDIA DALI is here; for modules that are imported where nothing decodes."""

import importlib
from typing import Literal

LoaderName = Literal["auto", "native", "dali"]

_OLDEST = (2, 0)


def dali_problem() -> str:
    """Why DALI cannot be used here; empty where it can."""
    try:
        version = str(importlib.import_module("nvidia.dali").__version__)
    except (ImportError, OSError) as error:
        return f"nvidia.dali cannot be imported ({_first_line(error)})"
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        return f"DALI is {version}, older than {'.'.join(map(str, _OLDEST))}"
    return ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
