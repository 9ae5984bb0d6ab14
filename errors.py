"""The exceptions the front door prints as one line: what was wrong, what was expected, what to do."""


class InputError(ValueError):
    """Something the user gave is wrong (exit code 2)."""


class RunError(RuntimeError):
    """A run cannot go on, though its input was right (exit code 1)."""
