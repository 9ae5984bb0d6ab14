"""Small corpora in the layouts of the datasets' authors: noise, labels and captions by chance."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import soundfile
from cacophony.engine.evaluate.datasets import esc50, tut2017, urbansound8k

VGG_CLASSES = ("dog barking", "playing flute, outdoors", "thunder", "typing")
WORDS = ["a", "dog", "rain", "bell", "barks", "falls", "rings", "softly", "loudly", "near", "far", "away", "while"]


@dataclass
class Made:
    """A dataset as it was made: what a reader must find."""

    root: Path
    table: Path
    audio: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    header: bool = True

    def rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
        """Change the rows of the table, its header left alone."""
        lines = self.table.read_text(encoding="utf-8").splitlines()
        head, rows = (lines[:1], lines[1:]) if self.header else ([], lines)
        self.table.write_text("\n".join([*head, *change(rows)]) + "\n", encoding="utf-8")


def noise(path: Path, random: Random) -> Path:
    """A fifth to half a second, at 16 kHz: the networks see 8 to 24 patches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(random.getrandbits(32))
    soundfile.write(path, rng.normal(0, 0.1, random.randrange(3_000, 9_000)), 16_000)
    return path


def sentence(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randrange(2, 7)))


def write_rows(path: Path, rows: Sequence[Sequence[object]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return path


def make_audiocaps(root: Path, clips: int, seed: int = 0) -> Made:
    random = Random(seed)
    made = Made(root, root / "test.csv")
    rows: list[Sequence[object]] = [("audiocap_id", "youtube_id", "start_time", "caption")]
    for number in range(clips):
        name = f"{random.getrandbits(40):011x}"
        suffix = "_30" if number % 2 else ""
        made.audio[name] = noise(root / "test" / f"{name}{suffix}.wav", random)
        made.captions[name] = sorted(sentence(random) for _ in range(5))
        rows += [(1000 + 5 * number + i, name, 30, text) for i, text in enumerate(made.captions[name])]
    write_rows(made.table, rows)
    return made


def make_clotho(root: Path, clips: int, seed: int = 0) -> Made:
    random = Random(seed)
    made = Made(root, root / "clotho_captions_evaluation.csv")
    rows: list[Sequence[object]] = [("file_name", *(f"caption_{i}" for i in range(1, 6)))]
    for number in range(clips):
        name = f"Rain, part {number} [{random.randrange(99)}].wav"
        made.audio[name] = noise(root / "evaluation" / name, random)
        made.captions[name] = [sentence(random) for _ in range(5)]
        rows.append((name, *made.captions[name]))
    write_rows(made.table, rows)
    return made


def make_esc50(root: Path, clips: int, seed: int = 0) -> Made:
    random = Random(seed)
    made = Made(root, root / "meta" / "esc50.csv")
    rows: list[Sequence[object]] = [("filename", "fold", "target", "category", "esc10", "src_file", "take")]
    for number in range(clips):
        name, label = f"{number % 5 + 1}-{random.randrange(10**6)}-A-{number}.wav", random.choice(esc50.CLASSES)
        made.audio[name], made.labels[name] = noise(root / "audio" / name, random), label
        rows.append((name, number % 5 + 1, esc50.CLASSES.index(label), label, "False", 1, "A"))
    write_rows(made.table, rows)
    return made


def make_urbansound8k(root: Path, clips: int, seed: int = 0) -> Made:
    random = Random(seed)
    made = Made(root, root / "metadata" / "UrbanSound8K.csv")
    rows: list[Sequence[object]] = [("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")]
    for number in range(clips):
        name, label, fold = (
            f"{random.randrange(10**6)}-0-0-{number}.wav",
            random.choice(urbansound8k.CLASSES),
            1 + number % 10,
        )
        made.audio[name] = noise(root / "audio" / f"fold{fold}" / name, random)
        made.labels[name] = label
        rows.append((name, 1, 0.0, 4.0, 1, fold, 0, label))
    write_rows(made.table, rows)
    return made


def make_tut2017(root: Path, clips: int, seed: int = 0) -> Made:
    random = Random(seed)
    folder = "TUT-acoustic-scenes-2017-evaluation"
    made = Made(root, root / folder / "meta.txt", header=False)
    rows: list[Sequence[object]] = []
    for number in range(clips):
        label = random.choice(tut2017.CLASSES)
        name = f"{folder}/audio/{number}.wav"
        made.audio[name], made.labels[name] = noise(root / name, random), label
        rows.append((f"audio/{number}.wav", label))
    write_rows(made.table, rows, "\t")
    return made


def make_vggsound(root: Path, clips: int, seed: int = 0) -> Made:
    random = Random(seed)
    made = Made(root, root / "vggsound.csv", header=False)
    rows: list[Sequence[object]] = [(f"train{i}", 10, label, "train") for i, label in enumerate(VGG_CLASSES)]
    for number in range(clips):
        label, start = random.choice(VGG_CLASSES[:3]), random.randrange(300)
        name = f"-{number:010d}_{start:06d}"
        made.audio[name], made.labels[name] = noise(root / "test" / f"{name}.wav", random), label
        rows.append((f"-{number:010d}", start, label, "test"))
    write_rows(made.table, rows)
    return made


CAPTIONED = {"audiocaps": make_audiocaps, "clotho": make_clotho}
LABELLED = {
    "esc50": make_esc50,
    "urbansound8k": make_urbansound8k,
    "tut2017": make_tut2017,
    "vggsound": make_vggsound,
}
