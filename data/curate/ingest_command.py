"""The command `curate ingest`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import tyro

from ...errors import InputError
from .actors import ActorFlags, Actors
from .ingest import EXCLUSIONS_NAME, ingest
from .manifest import KINDS, Kind, Manifest
from .sources.source import Source, make_source, read_sources

Folders = tyro.conf.UseAppendAction[tuple[Path, ...]]
ListedFolders = tyro.conf.UseAppendAction[tuple[tuple[Path, Path], ...]]

_HERE = Actors(workers=0)


def ingest_command(
    *,
    out: Path,
    sources: Path | None = None,
    audiocaps: Folders = (),
    clotho: Folders = (),
    freesound: Annotated[ListedFolders, tyro.conf.arg(metavar="METADATA AUDIO_DIR")] = (),
    laion: Folders = (),
    wavcaps: Annotated[ListedFolders, tyro.conf.arg(metavar="JSON AUDIO_DIR")] = (),
    ids: Annotated[ListedFolders, tyro.conf.arg(metavar="CSV AUDIO_DIR")] = (),
    kind: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=KIND")] = (),
    actors: ActorFlags = _HERE,
) -> int:
    """Collect the clips of published collections in one manifest; what cannot be used is counted and named.

    Every flag for a source may be given several times. Interrupted or killed, the same command continues.

    Args:
        out: Directory to write; must not exist or be empty.
        sources: TOML file with [[source]] tables: layout, audio, metadata, name, kind, split, encoding.
        audiocaps: Folder with train.csv and train/<youtube id>.wav.
        clotho: Folder with clotho_captions_development.csv and development/.
        freesound: .jsonl, .json or .csv with id, title, description, tags, license, and the folder of <id>.<extension>.
        laion: Folder with a json with text beside each audio file; tars have to be unpacked.
        wavcaps: WavCaps json, whose descriptions are read (its captions, where its kind is clean), and the folder.
        ids: csv of YouTube id and start, as of AudioSet or ACAV100M, and the folder of <id>_<start>.<extension>.
        kind: What the texts of a source are instead of what is usual: clean, noisy or unlabeled.
        actors: Where files are opened.
    """
    chosen = read_sources(sources) if sources else []
    chosen += [make_source("audiocaps", folder) for folder in audiocaps]
    chosen += [make_source("clotho", folder) for folder in clotho]
    chosen += [make_source("freesound", audio, metadata) for metadata, audio in freesound]
    chosen += [make_source("laion", folder) for folder in laion]
    chosen += [make_source("wavcaps", audio, metadata) for metadata, audio in wavcaps]
    chosen += [make_source("ids", audio, metadata) for metadata, audio in ids]
    manifest = ingest(with_kinds(chosen, kind), out, actors=actors)
    print("\n".join(summary(manifest)))
    return 0


def with_kinds(sources: list[Source], kinds: Iterable[str]) -> list[Source]:
    """The sources with the kinds of `NAME=KIND`; raises `InputError` where a name or a kind is none."""
    names = {source.name for source in sources}
    chosen: dict[str, Kind] = {}
    for text in kinds:
        name, _, wanted = text.partition("=")
        if name not in names or wanted not in KINDS:
            raise InputError(
                f"kind {text!r:.80}: expected NAME=KIND with one of {', '.join(sorted(names)) or 'the sources'} "
                f"and one of {', '.join(KINDS)}"
            )
        chosen[name] = cast(Kind, wanted)
    return [replace(source, kind=chosen.get(source.name, source.kind)) for source in sources]


def summary(manifest: Manifest) -> list[str]:
    """Lines for the terminal: clips and hours of each source, and the counts by reason."""
    clips, seconds = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row in manifest:
        clips[row["source"], row["kind"]] += 1
        seconds[row["source"], row["kind"]] += row["seconds"]  # pyright: ignore[reportArgumentType] - a sum of floats
    lines = [f"{manifest.rows} clips, {sum(seconds.values()) / 3600:.2f} h, in {manifest.folder}"]
    for (source, kind), count in clips.items():
        lines.append(f"{count:10} {kind:9} {seconds[source, kind] / 3600:10.2f} h  {source}")
    lines += [f"{count:10} {reason}" for reason, count in sorted(manifest.counts.items()) if reason != "kept"]
    return [*lines, f"each exclusion is named in {manifest.folder / EXCLUSIONS_NAME}"]
