"""ESC-50: `meta/esc50.csv` and a folder of clips."""

from pathlib import Path

from .corpus import LabelCorpus, files_by_stem, label_corpus
from .tables import once, read_table, require

NAME = "esc50"
MARKER = "meta/esc50.csv"
LAYOUT = "meta/esc50.csv (filename, category) and audio/<filename>"
CLASSES = (
    "airplane", "breathing", "brushing_teeth", "can_opening", "car_horn", "cat", "chainsaw", "chirping_birds",
    "church_bells", "clapping", "clock_alarm", "clock_tick", "coughing", "cow", "crackling_fire", "crickets", "crow",
    "crying_baby", "dog", "door_wood_creaks", "door_wood_knock", "drinking_sipping", "engine", "fireworks",
    "footsteps", "frog", "glass_breaking", "hand_saw", "helicopter", "hen", "insects", "keyboard_typing", "laughing",
    "mouse_click", "pig", "pouring_water", "rain", "rooster", "sea_waves", "sheep", "siren", "sneezing", "snoring",
    "thunderstorm", "toilet_flush", "train", "vacuum_cleaner", "washing_machine", "water_drops", "wind",
)  # fmt: skip


def read_esc50(directory: Path) -> LabelCorpus:
    """Read all five folds; raises InputError for another layout and for a label that is none of the 50.

    A class stands in the template as in the csv, underscores included: so the authors of Cacophony evaluate it.
    """
    require(directory, NAME, LAYOUT, MARKER, "audio")
    labels: dict[str, str] = {}
    for row in read_table(directory / MARKER, ("filename", "category")):
        once(labels, row.values[0], row.values[1], row, "the category")
    find = files_by_stem(directory / "audio")
    return label_corpus(
        NAME, directory, labels, CLASSES, lambda name: find(Path(name).stem), template="This is a sound of {}"
    )
