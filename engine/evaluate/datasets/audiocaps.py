"""AudioCaps: a csv per split with one row per caption, and a folder of clips named by their YouTube ids."""

from pathlib import Path

from .corpus import CaptionCorpus, caption_corpus, files_by_stem
from .tables import check_caption, once, read_table, require

NAME = "audiocaps"
MARKER = "test.csv"
LAYOUT = "test.csv (audiocap_id, youtube_id, start_time, caption) and test/<youtube_id>.wav"


def read_audiocaps(directory: Path) -> CaptionCorpus:
    """Read the test split: five captions a clip in the authors' csv.

    A clip's file is named by its YouTube id alone, or with `_<start_time>` behind it. Raises InputError for another
    layout and for an empty caption.
    """
    require(directory, NAME, LAYOUT, MARKER, "test")
    text_of_row: dict[str, str] = {}
    captions: dict[str, dict[str, str]] = {}
    start_of_clip: dict[str, str] = {}
    for row in read_table(directory / MARKER, ("audiocap_id", "youtube_id", "start_time", "caption")):
        number, clip, start, caption = row.values
        once(text_of_row, number, text := check_caption(caption, clip, row), row, "the caption")
        once(start_of_clip, clip, start, row, "start_time")
        captions.setdefault(clip, {})[number] = text
    find = files_by_stem(directory / "test")
    return caption_corpus(
        NAME,
        directory,
        # By text, so that the order of rows is of no account.
        {clip: tuple(sorted(texts.values())) for clip, texts in captions.items()},
        lambda clip: find(clip) or find(f"{clip}_{start_of_clip[clip]}"),
    )
