"""UrbanSound8K: `metadata/UrbanSound8K.csv` and ten folders of clips."""

from pathlib import Path

from .corpus import LabelCorpus, files_by_stem, label_corpus
from .tables import once, read_table, require

NAME = "urbansound8k"
MARKER = "metadata/UrbanSound8K.csv"
LAYOUT = "metadata/UrbanSound8K.csv (slice_file_name, fold, class) and audio/fold<fold>/<slice_file_name>"
CLASSES = (
    "air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling", "engine_idling", "gun_shot",
    "jackhammer", "siren", "street_music",
)  # fmt: skip


def read_urbansound8k(directory: Path) -> LabelCorpus:
    """Read all ten folds; raises InputError for another layout and for a label that is none of the ten.

    A class stands in the template with spaces for underscores: so the authors of Cacophony evaluate it.
    """
    require(directory, NAME, LAYOUT, MARKER, "audio")
    labels: dict[str, str] = {}
    fold_of_clip: dict[str, str] = {}
    for row in read_table(directory / MARKER, ("slice_file_name", "fold", "class")):
        name, fold, label = row.values
        once(labels, name, label, row, "the class")
        once(fold_of_clip, name, fold, row, "the fold")
    find = {fold: files_by_stem(directory / "audio" / f"fold{fold}") for fold in set(fold_of_clip.values())}
    return label_corpus(
        NAME,
        directory,
        labels,
        CLASSES,
        lambda name: find[fold_of_clip[name]](Path(name).stem),
        template="This is a sound of {}",
        text_of_class=lambda label: label.replace("_", " "),
    )
