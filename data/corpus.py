"""The corpus before packing: which audio files there are, and which captions each has."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .captions import CaptionRow, CaptionTable, leaves_folder

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")

MISSING_FILE = "caption for a missing file"
NO_CAPTION = "file without caption"
EMPTY_CAPTION = "empty caption"
OUTSIDE = "path outside the folder"
BAD_NAME = "file name is not UTF-8"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file of the corpus, on disk or only in the captions file."""

    name: str
    """Path relative to the audio folder, with `/`, as on disk."""
    path: Path
    """Where the file lies, if it does."""
    stamp: tuple[int, int]
    """Size in bytes and modification time in ns; (-1, -1) where there is no file."""
    captions: tuple[str, ...] = ()
    """Captions that people wrote."""
    synthetic_captions: tuple[str, ...] = ()
    """Captions that a machine wrote."""
    defect: str = ""
    """Why the file cannot be packed, as far as is known without opening it; empty where it may be."""
    warnings: tuple[str, ...] = ()
    """What was dropped although the file itself may be packed."""


def find_candidates(audio_dir: Path, table: CaptionTable | None) -> list[Candidate]:
    """Every audio file under `audio_dir` and everything that the captions name, sorted by name.

    Raises `InputError` when `audio_dir` or a folder in it cannot be listed.
    """
    if not audio_dir.is_dir():
        raise InputError(f"audio folder {audio_dir}: not a directory; give the folder that holds the audio files")
    on_disk = _files(audio_dir)
    captioned = table.by_file(on_disk) if table else {}
    names = {name for name in on_disk if name.lower().endswith(AUDIO_SUFFIXES)} | captioned.keys()
    return [
        _candidate(audio_dir, name, name in on_disk, captioned.get(name, []), table is not None)
        for name in sorted(names)
    ]


def _files(audio_dir: Path) -> set[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"audio folder {error.filename}: {error.strerror}; make it readable or move it away")

    names: set[str] = set()
    # Linked folders are followed; one that was visited is not entered again, so that a circle of links ends.
    visited = {os.path.realpath(audio_dir)}
    for folder, subfolders, files in os.walk(audio_dir, followlinks=True, onerror=refuse):
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in sorted(subfolders)}
        subfolders[:] = [name for name, target in real.items() if target not in visited]
        visited.update(real.values())
        names.update(Path(folder, name).relative_to(audio_dir).as_posix() for name in files)
    return names


def _candidate(audio_dir: Path, name: str, exists: bool, rows: list[CaptionRow], needs_caption: bool) -> Candidate:
    path = audio_dir / name
    try:
        status = path.stat() if exists else None
    except OSError:
        status = None
    written = [row for row in rows if row.caption]
    defect = ""
    if not exists:
        defect = OUTSIDE if leaves_folder(name) else MISSING_FILE
    elif not name.isascii() and not _is_utf8(name):
        defect = BAD_NAME
    elif needs_caption and not written:
        defect = EMPTY_CAPTION if rows else NO_CAPTION
    return Candidate(
        name=name,
        path=path,
        stamp=(status.st_size, status.st_mtime_ns) if status else (-1, -1),
        captions=tuple(row.caption for row in written if not row.synthetic),
        synthetic_captions=tuple(row.caption for row in written if row.synthetic),
        defect=defect,
        warnings=() if defect else (EMPTY_CAPTION,) * (len(rows) - len(written)),
    )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
