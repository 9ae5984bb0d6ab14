"""TUT Acoustic Scenes 2017: a `meta.txt` and a folder of clips, for each of the development and evaluation sets."""

from pathlib import Path

from ....errors import InputError
from .corpus import LabelCorpus, label_corpus
from .tables import once, read_table, require

NAME = "tut2017"
MARKERS = (
    "meta.txt",
    "TUT-acoustic-scenes-2017-development/meta.txt",
    "TUT-acoustic-scenes-2017-evaluation/meta.txt",
)
LAYOUT = (
    "meta.txt (file and scene, separated by a tab) and audio/, in it or in "
    "TUT-acoustic-scenes-2017-development/ and TUT-acoustic-scenes-2017-evaluation/"
)
CLASSES = (
    "beach", "bus", "cafe/restaurant", "car", "city_center", "forest_path", "grocery_store", "home", "library",
    "metro_station", "office", "park", "residential_area", "train", "tram",
)  # fmt: skip


def read_tut2017(directory: Path) -> LabelCorpus:
    """Read the sets that are there, one or both; raises InputError for another layout or a label that is none of 15.

    A class stands in the template with spaces for underscores.
    """
    require(directory, NAME, LAYOUT)
    tables = [directory / marker for marker in MARKERS if (directory / marker).is_file()]
    if not tables:
        raise InputError(f"{directory}: not laid out as {NAME}: no {', no '.join(MARKERS)}; expected {LAYOUT}")
    labels: dict[str, str] = {}
    for table in tables:
        folder = table.parent.relative_to(directory)
        for row in read_table(table, ("file", "scene"), header=False, delimiter="\t", quoted=False):
            once(labels, str(folder / row.values[0]), row.values[1], row, "the scene")

    def find(name: str) -> Path | None:
        path = directory / name
        return path if path.is_file() else None

    return label_corpus(
        NAME,
        directory,
        labels,
        CLASSES,
        find,
        template="This is a sound on {}",
        text_of_class=lambda label: label.replace("_", " "),
    )
