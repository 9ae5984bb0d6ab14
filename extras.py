"""Packages of the optional extras, imported where they are used."""

import importlib
import warnings
from types import ModuleType

from .errors import InputError


def require(module: str, package: str, purpose: str, *, extra: str) -> ModuleType:
    """Import ``module`` of ``package``; raises InputError that names the ``extra`` where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a package says of itself while it is imported
            return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{purpose} needs {package} ({error}); install it with pip install 'cacophony-engine[{extra}]'"
        ) from None
