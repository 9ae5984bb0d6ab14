"""Which audio files lie under a folder, by name: kept in a file, so that memory does not grow with their number."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ....errors import InputError
from ...audio import AUDIO_SUFFIXES, printable
from ...captions import is_utf8, normal_name
from ...corpus import is_audio, walk_files

NO_FILE = "no audio file"
SEVERAL_FILES = "several audio files of that name"


class Found(NamedTuple):
    """The audio of an id."""

    path: str
    """Absolute; empty where there is a problem."""
    problem: str = ""


class AudioIndex:
    """The audio under `folder`, searched once; `database` is a file to write. Raises as `walk_files` does."""

    def __init__(self, folder: Path, database: Path) -> None:
        self._folder = os.path.abspath(folder)
        self._database = sqlite3.connect(database)
        self._database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE files (name TEXT, readable INTEGER); CREATE TABLE keys (key TEXT, name TEXT);"
        )
        try:
            for name in walk_files(folder):
                if is_audio(name):
                    self._add(name)
        except InputError:
            self.close()
            raise
        self._database.executescript("CREATE INDEX by_key ON keys (key, name);")

    def _add(self, name: str) -> None:
        readable = is_utf8(name)
        self._database.execute("INSERT INTO files VALUES (?, ?)", (name if readable else printable(name), readable))
        if readable:
            stem = _stem(name.rpartition("/")[2])
            # Downloads from Freesound are called <id>__<user>__<title>.
            for key in {stem, stem.partition("__")[0]}:
                self._database.execute("INSERT INTO keys VALUES (?, ?)", (key, name))

    def find(self, *names: str) -> Found:
        """The file called as the first of `names` that one is called, with or without an extension, in any folder."""
        for wanted in names:
            query = "SELECT DISTINCT name FROM keys WHERE key = ? ORDER BY name LIMIT 2"
            rows = self._database.execute(query, (_stem(wanted),)).fetchall()
            if rows:
                return Found(self.path(rows[0][0])) if len(rows) == 1 else Found("", SEVERAL_FILES)
        return Found("", NO_FILE)

    def names(self) -> Iterator[tuple[str, bool]]:
        """All names relative to the folder, sorted, and whether they are UTF-8 (others are shown as `printable`)."""
        for name, readable in self._database.execute("SELECT name, readable FROM files ORDER BY name"):
            yield name, bool(readable)

    def path(self, name: str) -> str:
        """The absolute path of a name."""
        return os.path.join(self._folder, name)

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def _stem(name: str) -> str:
    name = normal_name(name)
    return name.rpartition(".")[0] if name.lower().endswith(AUDIO_SUFFIXES) else name
