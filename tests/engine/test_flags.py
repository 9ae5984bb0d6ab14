"""A wrong flag is one plain line, whatever the terminal makes tyro draw."""

import os
import pty
import subprocess
import sys

import pytest
from cacophony.engine.flags import parse_flags
from cacophony.errors import InputError


def settings(*, learning_rate: float = 1.0, steps: int = 3) -> tuple[float, int]:
    """Settings.

    Args:
        learning_rate: Peak.
        steps: Steps.
    """
    return learning_rate, steps


def test_flags_are_parsed_and_the_width_of_the_terminal_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "77")
    assert parse_flags(settings, "prog", ["--steps", "5"]) == (1.0, 5)
    assert os.environ["COLUMNS"] == "77"


def test_a_long_value_is_not_broken():
    value = "/" + "a" * 150
    with pytest.raises(InputError) as error:
        parse_flags(settings, "prog", ["--steps", value])
    assert value in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("environment", [{}, {"PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1"}])
def test_a_terminal_gets_the_same_plain_line(environment: dict[str, str]):
    leader, follower = pty.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "cacophony", "train", "mae", "--data", "a", "--out", "b", "--update.learnin-rate", "3"],
        stdout=follower,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm-256color"} | environment,
        text=True,
    )
    os.close(follower)
    os.close(leader)
    assert process.returncode == 2
    assert process.stderr == (
        "cacophony: Unrecognized options: --update.learnin-rate, 3; did you mean --update.learning-rate? "
        "(`cacophony train mae --help` lists all)\n"
    )
