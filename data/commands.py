"""The command about input: pack."""

from pathlib import Path

import tyro

from .pack import pack


def pack_command(
    audio_dir: tyro.conf.Positional[Path],
    /,
    *,
    out: Path,
    captions: Path | None = None,
    strict: bool = False,
    workers: int | None = None,
    clips_per_shard: int = 512,
) -> int:
    """Turn a folder of wav, flac, ogg and mp3 into shards of 16 kHz mono FLAC, and report what was skipped and why.

    Args:
        audio_dir: Folder with audio, searched recursively.
        out: Directory to write; must not exist or be empty.
        captions: csv with the columns file (relative to AUDIO_DIR), caption and, optionally, synthetic.
        strict: Make the first defect in the corpus an error instead of skipping the clip.
        workers: Threads that decode and resample; all cores by default.
        clips_per_shard: Clips in one tar file.
    """
    report = pack(audio_dir, out, captions=captions, strict=strict, workers=workers, clips_per_shard=clips_per_shard)
    print("\n".join(report.summary()))
    return 0
