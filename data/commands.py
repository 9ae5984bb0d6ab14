"""The commands about input: pack, shards check, shards merge."""

from pathlib import Path

import tyro

from ..errors import InputError
from ..json_file import check_writable, write_json
from .audio import SAMPLE_RATE
from .layouts import Layout
from .pack import pack
from .shards_check import check_shards
from .shards_merge import merge_shards


def pack_command(
    audio_dir: tyro.conf.Positional[Path],
    /,
    *,
    out: Path,
    captions: Path | None = None,
    layout: Layout = "auto",
    strict: bool = False,
    workers: int | None = None,
    clips_per_shard: int = 512,
) -> int:
    """Turn wav, flac, ogg and mp3, in folders or tars, into shards of 16 kHz mono FLAC, and report what was skipped.

    Interrupted or killed, the same command continues.

    Args:
        audio_dir: Folder with audio, or with tars of audio and json, searched recursively; or a mix.
        out: Directory to write; must not exist or be empty, and lie outside AUDIO_DIR.
        captions: csv with file (relative to AUDIO_DIR), caption and, optionally, synthetic; or a WavCaps-style json.
        layout: Where captions are: csv, a json beside each audio file or in its tar (laion), one json list (wavcaps),
            or AUDIO_DIR as `curate mix` wrote it (manifest).
        strict: Make the first defect in the corpus an error instead of skipping the clip.
        workers: Processes that decode and resample; one per core by default.
        clips_per_shard: Clips in one tar file.
    """
    report = pack(
        audio_dir,
        out,
        captions=captions,
        layout=layout,
        strict=strict,
        workers=workers,
        clips_per_shard=clips_per_shard,
    )
    print("\n".join(report.summary()))
    return 0


def check_command(
    folder: tyro.conf.Positional[Path], /, *, json: Path | None = None, workers: int | None = None
) -> int:
    """Decode every clip of a packed directory, compare everything with its index, name duplicates; a table per source.

    Ends with 2 when something is wrong with the data. Duplicates are named, and are not wrong.

    Args:
        folder: Packed directory.
        json: File for all findings.
        workers: Processes, a shard at a time in each; one per core by default.
    """
    if json is not None:
        check_writable(json)
    report = check_shards(folder, workers=workers)
    if json is not None:
        write_json(json, report.content())
    print("\n".join(report.lines()))
    if report.problems:
        raise InputError(
            f"{folder}: {len(report.problems)} problem(s) in {report.shards} shards; copy those again, or pack again"
        )
    return 0


def merge_command(folders: tyro.conf.Positional[list[Path]], /, *, out: Path, clips_per_shard: int = 512) -> int:
    """Join packed directories into one, without encoding anything again.

    Args:
        folders: Packed directories, in the order in which their clips shall stand.
        out: Directory to write; must not exist or be empty.
        clips_per_shard: Clips in one tar file.
    """
    index = merge_shards(folders, out, clips_per_shard=clips_per_shard)
    hours = index.totals.samples / SAMPLE_RATE / 3600
    print(f"{index.clips} clips, {hours:.2f} h, in {len(index.shards)} shards, in {out}")
    return 0
