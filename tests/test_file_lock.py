"""One process at a time works in a folder; the lock of one that is gone holds nobody up."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest
from cacophony.errors import InputError
from cacophony.file_lock import locked

HOLDER = """
import sys
from pathlib import Path
from cacophony.file_lock import locked
with locked(Path(sys.argv[1]), "waiting"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=r"folder: another process is packing there"), locked(folder, "packing"):
            pass
        holder.kill()
        holder.wait()
        with locked(folder, "packing"):
            pass


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path, "training"):
        pass
    assert "cannot be locked ([Errno 37] No locks available)" in capsys.readouterr().err
