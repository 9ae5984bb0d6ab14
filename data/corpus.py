"""The corpus before packing: which audio there is, in files and in tars, and where the captions of each are."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import InputError
from .audio import AUDIO_SUFFIXES, NOT_OPENED, UNREAD, UNREAD_SUFFIXES
from .captions import MAX_CLIP_CHARACTERS, CaptionRow, is_utf8, leaves_folder, usable_captions
from .sidecar import NO_SIDECAR
from .tar_members import Member, members

MISSING_FILE = "caption for a missing file"
NO_CAPTION = "file without caption"
OUTSIDE = "path outside the folder"
BAD_NAME = "file name is not UTF-8"


class Table(Protocol):
    """A captions file that was read: a csv's `CaptionTable` or WavCaps' `IdTable`."""

    @property
    def digest(self) -> str:
        """SHA-256 of the file's bytes, hexadecimal."""
        ...

    def by_file(self, on_disk: Iterable[str]) -> dict[str, list[CaptionRow]]:
        """Rows grouped by file: the name on disk where one matches."""
        ...


class Span(NamedTuple):
    """Where bytes are: a file, or a part of a tar."""

    path: str
    """The file or the tar."""
    offset: int = 0
    """First byte."""
    size: int = -1
    """Bytes; -1 for all of a file."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Audio of the corpus, on disk or only in the captions file."""

    name: str
    """Path relative to the audio folder, with `/`, as on disk; of a member, the tar's followed by its own."""
    stamp: tuple[int, ...]
    """Size in bytes and modification time in ns of the file or tar and of a json beside it; -1 where there is none."""
    audio: Span
    """Where the audio lies, if it does."""
    sidecar: Span | None = None
    """Where its captions lie, if they are in a json of their own."""
    captions: tuple[str, ...] = ()
    """Captions that people wrote."""
    synthetic_captions: tuple[str, ...] = ()
    """Captions that a machine wrote."""
    defect: str = ""
    """Why the audio cannot be packed, as far as is known without opening it; empty where it may be."""
    warnings: tuple[str, ...] = ()
    """What was dropped although the audio itself may be packed."""


def list_files(audio_dir: Path) -> set[str]:
    """The names, relative to `audio_dir`, of all files under it; raises as `walk_files` does."""
    return set(walk_files(audio_dir))


def walk_files(audio_dir: Path) -> Iterator[str]:
    """The names, relative to `audio_dir`, of all files under it, a folder at a time.

    Raises `InputError` when `audio_dir` or a folder in it cannot be listed.
    """
    if not audio_dir.is_dir():
        raise InputError(f"audio folder {audio_dir}: not a directory; give the folder that holds the audio files")

    def refuse(error: OSError) -> None:
        raise InputError(f"audio folder {error.filename}: {error.strerror}; make it readable or move it away")

    # Each folder once, under its own name where it has one here: links to folders are followed when all others are
    # done. So a circle of links ends, and no clip is listed twice.
    visited: set[str] = set()
    starts = deque([os.fspath(audio_dir)])
    while starts:
        for folder, subfolders, files in os.walk(starts.popleft(), onerror=refuse):
            real = os.path.realpath(folder)
            if real in visited:
                subfolders.clear()
                continue
            visited.add(real)
            subfolders.sort()
            starts += filter(os.path.islink, (os.path.join(folder, name) for name in subfolders))
            place = Path(folder).relative_to(audio_dir)
            prefix = "" if place == Path() else f"{place.as_posix()}/"
            for name in files:
                yield prefix + name


def is_audio(name: str) -> bool:
    """Whether a file of this name is taken for audio."""
    return name.lower().endswith(AUDIO_SUFFIXES)


def is_unread(name: str) -> bool:
    """Whether a file of this name is audio that cannot be read."""
    return name.lower().endswith(UNREAD_SUFFIXES)


def sidecar_name(name: str) -> str:
    """The json that LAION-style corpora have beside an audio file."""
    return f"{name.rpartition('.')[0]}.json"


def candidates_of_table(audio_dir: Path, on_disk: set[str], table: Table | None) -> list[Candidate]:
    """Every audio file, and everything that the captions name, sorted by name; without a table captions are no matter.

    Raises `InputError` when the captions do not fit the files.
    """
    captioned = table.by_file(on_disk) if table else {}
    names = set(filter(_is_listed, on_disk)) | captioned.keys()
    return [
        _of_table(audio_dir, name, name in on_disk, captioned.get(name, []), table is not None)
        for name in sorted(names)
    ]


def candidates_with_sidecars(audio_dir: Path, on_disk: set[str]) -> list[Candidate]:
    """Every audio file with the json beside it, and every audio member of a tar with the json in it, sorted by name."""
    found = [_beside(audio_dir, name, sidecar_name(name) in on_disk) for name in filter(_is_listed, on_disk)]
    for name in on_disk:
        if name.lower().endswith(".tar"):
            found += _of_tar(audio_dir, name)
    return sorted(found, key=lambda candidate: (candidate.name, candidate.audio.offset))


def captioned(
    name: str,
    path: str,
    written: Iterable[str],
    synthetic: Iterable[str],
    *,
    missing: str = "",
    needs_caption: bool = True,
) -> Candidate:
    """The candidate of an audio file and its captions, of which those that cannot be used are left out.

    `missing` says why there is no file that can be read.
    """
    people = usable_captions(written)
    machine = usable_captions(synthetic, room=_room(people.texts))
    dropped = (*people.dropped, *machine.dropped)
    defect = missing
    if not missing and not is_utf8(name):
        defect = BAD_NAME
    elif not missing and needs_caption and not (people.texts or machine.texts):
        defect = dropped[0] if dropped else NO_CAPTION
    return Candidate(
        name=name,
        stamp=(-1, -1) if missing else _stamp(path),
        audio=Span(path),
        captions=people.texts,
        synthetic_captions=machine.texts,
        defect=defect,
        warnings=() if defect else dropped,
    )


def _is_listed(name: str) -> bool:
    """Whether the report names a file of this name: as audio, or as audio that cannot be read."""
    return is_audio(name) or is_unread(name)


def _of_table(audio_dir: Path, name: str, exists: bool, rows: Sequence[CaptionRow], needs_caption: bool) -> Candidate:
    path = os.path.join(audio_dir, name)
    written = [row.caption for row in rows if not row.synthetic]
    synthetic = [row.caption for row in rows if row.synthetic]
    missing = "" if exists else OUTSIDE if leaves_folder(name) else MISSING_FILE
    if exists and is_unread(name):
        missing = UNREAD
    return captioned(name, path, written, synthetic, missing=missing, needs_caption=needs_caption)


def _beside(audio_dir: Path, name: str, has_sidecar: bool) -> Candidate:
    path, sidecar = os.path.join(audio_dir, name), os.path.join(audio_dir, sidecar_name(name))
    defect = UNREAD if is_unread(name) else "" if has_sidecar else NO_SIDECAR
    return Candidate(
        name=name,
        stamp=_stamp(path, sidecar),
        audio=Span(path),
        sidecar=Span(sidecar) if has_sidecar else None,
        defect=defect if is_utf8(name) else BAD_NAME,
    )


def _of_tar(audio_dir: Path, tar_name: str) -> list[Candidate]:
    path = os.path.join(audio_dir, tar_name)
    stamp = _stamp(path)
    try:
        found = list(members(path)) if os.path.isfile(path) else [Member("", 0, 0, NOT_OPENED)]
    except OSError:
        found = [Member("", 0, 0, NOT_OPENED)]
    sidecars = {member.name: member for member in found if member.name.endswith(".json") and not member.problem}
    candidates = []
    for member in found:
        if not (member.problem or is_audio(member.name)):
            continue
        name = f"{tar_name}/{member.name}" if member.name else tar_name
        sidecar = sidecars.get(sidecar_name(member.name))
        defect = member.problem or ("" if sidecar else NO_SIDECAR)
        candidates.append(
            Candidate(
                name=name,
                stamp=stamp,
                audio=Span(path, member.offset, member.size),
                sidecar=Span(path, sidecar.offset, sidecar.size) if sidecar else None,
                defect=defect if is_utf8(name) else BAD_NAME,
            )
        )
    return candidates


def _room(texts: Iterable[str]) -> int:
    return max(0, MAX_CLIP_CHARACTERS - sum(map(len, texts)))


def _stamp(*paths: str) -> tuple[int, ...]:
    stamp: list[int] = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            stamp += (-1, -1)
        else:
            stamp += (status.st_size, status.st_mtime_ns)
    return tuple(stamp)
