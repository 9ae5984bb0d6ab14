"""What the fields of every configuration are held to."""

import math

from ..errors import InputError


def require(condition: bool, message: str) -> None:
    """Raise InputError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def require_finite(config: object, prefix: str) -> None:
    """Raise InputError where a number of ``config`` is infinite or NaN; ``prefix`` stands before the field's name."""
    for name, value in vars(config).items():
        require(not isinstance(value, float) or math.isfinite(value), f"{prefix}{name} is {value}; expected a number")
