"""Our own shards with captions, as `cacophony pack` writes them."""

from functools import partial
from pathlib import Path

from ....data.shards import INDEX_NAME, Shards
from ....errors import InputError
from .corpus import CaptionCorpus, Clip

NAME = "shards"
MARKER = INDEX_NAME
LAYOUT = f"{INDEX_NAME} and shard-000000.tar … of `cacophony pack --captions`"


def read_packed(directory: Path) -> CaptionCorpus:
    """Take all clips of packed shards; a clip's human captions count, synthetic ones where it has no other.

    Raises InputError where ``directory`` holds no shards or a clip has no caption.
    """
    # Open as long as the corpus lives: clips are read one by one, as they are embedded.
    shards = Shards.open(directory)
    if not shards.has_captions:
        raise InputError(f"{directory}: the shards have no captions; pack with --captions captions.csv")
    found = sorted((shards.clip(index) for index in range(len(shards))), key=lambda clip: clip.source)
    clips = tuple(
        Clip(one.source, one.samples, f"{one.source} {one.samples} {one.flac_crc32}", partial(shards.read, one.index))
        for one in found
    )
    captions = tuple(one.captions or one.synthetic_captions for one in found)
    return CaptionCorpus(NAME, directory, clips, (), captions)
