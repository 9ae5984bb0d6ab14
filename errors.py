"""The one exception that means "the input was wrong": the front door prints it as a line and exits with 2."""


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line that says what was wrong, what was expected and what to do.
    """
