"""VGGSound: `vggsound.csv` without a header, and the clips of its test split."""

from pathlib import Path

from ....errors import InputError
from .corpus import LabelCorpus, files_by_stem, label_corpus
from .tables import once, read_table, require

NAME = "vggsound"
MARKER = "vggsound.csv"
LAYOUT = "vggsound.csv (id, start second, label, train or test; no header) and test/<id>_<start in six digits>.wav"


def read_vggsound(directory: Path) -> LabelCorpus:
    """Read the test split; the classes are the labels of the training split, where the csv has one.

    Raises InputError for another layout, and for a label of a test clip that no training clip has.
    """
    require(directory, NAME, LAYOUT, MARKER, "test")
    labels: dict[str, str] = {}
    classes: set[str] = set()
    for row in read_table(directory / MARKER, ("id", "start", "label", "split"), header=False):
        video, start, label, split = row.values
        if split not in ("train", "test") or not start.isdecimal():
            raise InputError(f"{row.where}: {', '.join(row.values)!r}; expected id, start second, label, train or test")
        if split == "train":
            classes.add(label)
        else:
            once(labels, f"{video}_{int(start):06d}", label, row, "the label")
    find = files_by_stem(directory / "test")
    return label_corpus(
        NAME, directory, labels, sorted(classes or set(labels.values())), find, template="This is a sound of {}"
    )
