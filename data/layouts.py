"""How a corpus carries its captions: a csv, a json beside each audio file (LAION), one json list (WavCaps), a mix."""

from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import InputError
from .audio import AUDIO_SUFFIXES
from .captions import read_captions
from .corpus import Candidate, candidates_of_table, candidates_with_sidecars, is_audio, list_files, sidecar_name
from .curate.candidates import is_manifest, read_mix
from .wavcaps import read_wavcaps

Layout = Literal["auto", "csv", "laion", "wavcaps", "manifest"]


class Listing(NamedTuple):
    """A corpus as it will be packed."""

    candidates: list[Candidate]
    """All audio, sorted by name, or in the order of the manifest."""
    digest: str
    """SHA-256 of the captions file or of manifest.json, hexadecimal; empty where there is none."""
    how: str
    """Which layout was read, for the terminal."""


def list_corpus(audio_dir: Path, layout: Layout, captions: Path | None) -> Listing:
    """Everything under `audio_dir` that may become clips, with its captions or the place where they are.

    `csv` reads `captions`, or no captions at all; `laion` a json with `text` beside each audio file, in the folder or
    in the tars in it; `wavcaps` the json `captions`; `manifest` the mix that `cacophony curate mix` wrote to
    `audio_dir`. `auto` is `wavcaps` for captions that end in .json, `csv` for others; without captions it is `manifest`
    where one is there, `laion` where an audio file has a json or a tar is there, `csv` otherwise.

    Raises `InputError` when something cannot be read, `captions` does not go with `layout`, or there is no audio.
    """
    if layout == "manifest" or (layout == "auto" and captions is None and is_manifest(audio_dir)):
        if captions is not None:
            raise InputError(f"layout manifest has captions in the mix; leave out --captions {captions}")
        candidates, manifest = read_mix(audio_dir)
        return Listing(candidates, manifest.digest, f"manifest (a mix of {manifest.rows} clips)")
    on_disk = list_files(audio_dir)
    chosen = _choose(on_disk, captions) if layout == "auto" else layout
    if chosen == "laion" and captions is not None:
        raise InputError(f"layout laion has captions beside the audio; leave out --captions {captions}")
    if chosen == "wavcaps" and captions is None:
        raise InputError("layout wavcaps needs the json file with the captions; name it with --captions")
    if chosen == "laion":
        candidates, digest = candidates_with_sidecars(audio_dir, on_disk), ""
        how = "laion (a json with text for each audio file)"
    else:
        table = None
        if captions is not None:
            table = read_captions(captions) if chosen == "csv" else read_wavcaps(captions)
        candidates, digest = candidates_of_table(audio_dir, on_disk, table), table.digest if table else ""
        how = f"{chosen} ({captions})" if captions else "audio without captions"
    if not candidates:
        raise InputError(f"audio folder {audio_dir}: no audio files; expected {', '.join(AUDIO_SUFFIXES)}")
    return Listing(candidates, digest, how)


def _choose(on_disk: set[str], captions: Path | None) -> Layout:
    if captions is not None:
        return "wavcaps" if captions.suffix.lower() == ".json" else "csv"
    has_tar = any(name.lower().endswith(".tar") for name in on_disk)
    has_sidecar = any(is_audio(name) and sidecar_name(name) in on_disk for name in on_disk)
    return "laion" if has_tar or has_sidecar else "csv"
