"""A procedural corpus: short sounds with compositional captions, for the demo and for tests.

The split is by combination: a (source, pitch, motion, rhythm, background) that is tested was never trained on, while
each of its values was heard in training with every source. A model does well here only by composing.
"""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import soxr

from ..errors import InputError
from .synthesis import BACKGROUNDS, MOTIONS, PITCHES, RHYTHMS, SAMPLE_RATE, SOURCES, Scene, render_scene

T = TypeVar("T")

_STORED_RATES = (16_000, 22_050, 44_100, 48_000)
# Four clips of a source are the fewest that can show all four motions and all four backgrounds.
_COVER_PER_SOURCE = max(len(MOTIONS), len(BACKGROUNDS))
MIN_TRAIN_CLIPS = len(SOURCES) * _COVER_PER_SOURCE

# Every wording belongs to one value only, so different combinations can never share a caption.
_WORDING: Mapping[str, Sequence[str]] = {
    "low": ("low", "deep", "low-pitched"),
    "middle": ("mid-range", "medium-pitched", "mid-pitched"),
    "high": ("high", "shrill", "high-pitched"),
    "steady": ("at a steady pitch", "on one constant note", "without changing pitch"),
    "rising": ("rising in pitch", "climbing upward", "gliding up"),
    "falling": ("falling in pitch", "sinking downward", "gliding down"),
    "wavering": ("wavering in pitch", "wobbling up and down", "trembling around its note"),
    "single": ("only once", "a single time", "in one long stretch"),
    "slow": ("slowly again and again", "at a slow pace", "repeatedly with long gaps"),
    "fast": ("in quick succession", "rapidly over and over", "many times very fast"),
    "silence": ("in silence", "in a quiet room", "with nothing else around"),
    "wind": ("in the wind", "while wind blows", "amid gusts of wind"),
    "hum": ("over an electric hum", "while a transformer hums", "above a humming drone"),
    "rain": ("in the rain", "while rain patters down", "over crackling rain"),
}
# Noun, and its verb as "it does" and as "doing".
_NOUN: Mapping[str, tuple[str, Sequence[tuple[str, str]]]] = {
    "bell": ("bell", (("rings", "ringing"), ("tolls", "tolling"))),
    "whistle": ("whistle", (("blows", "blowing"), ("toots", "tooting"))),
    "drum": ("drum", (("beats", "beating"), ("thuds", "thudding"))),
    "dog": ("dog", (("barks", "barking"), ("yelps", "yelping"))),
    "engine": ("engine", (("revs", "revving"), ("runs", "running"))),
    "bird": ("bird", (("chirps", "chirping"), ("trills", "trilling"))),
    "guitar": ("guitar string", (("twangs", "twanging"), ("is plucked", "being plucked"))),
    "glass": ("glass", (("clinks", "clinking"), ("is tapped", "being tapped"))),
    "horn": ("horn", (("blares", "blaring"), ("honks", "honking"))),
    "water": ("water drop", (("drips", "dripping"), ("plops", "plopping"))),
}
_TEMPLATES = (
    "a {pitch} {noun} {does} {rhythm}, {motion}, {background}",
    "{background}, a {pitch} {noun} {does} {rhythm}, {motion}",
    "{motion}, a {pitch} {noun} {does} {rhythm} {background}",
    "the sound of a {pitch} {noun} {doing} {rhythm} {background}, {motion}",
    "{background}, {motion}, a {pitch} {noun} is heard {doing} {rhythm}",
)


@dataclass(frozen=True)
class Corpus:
    """Where a corpus lies, and what its test clips truly hold."""

    train_dir: Path
    test_dir: Path
    train_captions: Path
    """CSV with the columns file, caption, synthetic; one or two rows a clip."""
    test_captions: Path
    """The same columns, one row a clip."""
    attributes: Mapping[str, dict[str, str]]
    """Test file name → its source (one of SOURCES), pitch, motion, rhythm and background."""


def make_corpus(out_dir: str | Path, *, train_clips: int, test_clips: int, seed: int = 0) -> Corpus:
    """Write `out_dir/train` and `out_dir/test`, each with WAV files and a `captions.csv`.

    Clips last 2–3 s and are stored as 16-bit PCM at 16, 22.05, 44.1 or 48 kHz, one in four in stereo. Train clips have
    one caption, about half of them a second one marked `synthetic`; test clips have one, and no two share it. Files of
    the same names are overwritten; equal arguments write equal files.

    Args:
        out_dir: folder to write into; made if absent.
        train_clips: at least MIN_TRAIN_CLIPS, so that every source is heard with every value of each attribute.
        test_clips: at least 1; each takes one of the 1440 combinations away from training.
        seed: not negative.

    Raises:
        InputError: a number is outside its range.
    """
    if seed < 0:
        raise InputError(f"seed is {seed}; a corpus needs a seed of 0 or more")
    train, test = split_scenes(train_clips, test_clips, np.random.default_rng([seed, 0]))
    train_dir, test_dir = Path(out_dir) / "train", Path(out_dir) / "test"
    for path in (train_dir, test_dir):
        path.mkdir(parents=True, exist_ok=True)

    rows: list[tuple[str, str, str]] = []
    for index, scene in enumerate(train):
        rng = np.random.default_rng([seed, 1, index])
        file = _write_clip(train_dir, index, scene, rng)
        first, second = rng.permutation(len(_TEMPLATES))[:2]
        rows.append((file, _caption(scene, _TEMPLATES[first], rng), "false"))
        if rng.random() < 0.5:
            rows.append((file, _caption(scene, _TEMPLATES[second], rng), "true"))
    _write_captions(train_dir / "captions.csv", rows)

    rows, attributes = [], {}
    for index, scene in enumerate(test):
        rng = np.random.default_rng([seed, 2, index])
        file = _write_clip(test_dir, index, scene, rng)
        rows.append((file, _caption(scene, _choose(_TEMPLATES, rng), rng), "false"))
        attributes[file] = asdict(scene)
    _write_captions(test_dir / "captions.csv", rows)
    return Corpus(train_dir, test_dir, train_dir / "captions.csv", test_dir / "captions.csv", attributes)


def split_scenes(train_clips: int, test_clips: int, rng: np.random.Generator) -> tuple[list[Scene], list[Scene]]:
    """Choose the scenes of the train and of the test clips: no scene in both, none twice in test.

    Args:
        train_clips: at least MIN_TRAIN_CLIPS; scenes repeat only once all that test left free are used.
        test_clips: at least 1.
        rng: decides which combinations are held out, and the order.

    Raises:
        InputError: a number is outside its range.
    """
    cover = [scene for source in SOURCES for scene in _cover(source, rng)]
    covered = set(cover)
    scenes = [Scene(*values) for values in itertools.product(SOURCES, PITCHES, MOTIONS, RHYTHMS, BACKGROUNDS)]
    rest = [scene for scene in scenes if scene not in covered]
    if train_clips < MIN_TRAIN_CLIPS:
        raise InputError(f"train_clips is {train_clips}; at least {MIN_TRAIN_CLIPS} show every value with every source")
    if not 1 <= test_clips <= len(rest):
        raise InputError(f"test_clips is {test_clips}; choose 1 to {len(rest)}, the combinations that can be held out")
    shuffled = [rest[i] for i in rng.permutation(len(rest))]
    test, free = shuffled[:test_clips], shuffled[test_clips:]
    # Whole rounds over the free combinations: each is heard about equally often, however many clips are asked for.
    extra = itertools.islice(itertools.cycle(free + cover), train_clips - len(cover))
    train = cover + list(extra)
    return [train[i] for i in rng.permutation(len(train))], test


def _cover(source: str, rng: np.random.Generator) -> list[Scene]:
    """The fewest scenes that show a source with every value of every attribute."""
    columns = [
        [values[i % len(values)] for i in rng.permutation(_COVER_PER_SOURCE)]
        for values in (PITCHES, MOTIONS, RHYTHMS, BACKGROUNDS)
    ]
    return [Scene(source, *values) for values in zip(*columns, strict=True)]


def _caption(scene: Scene, template: str, rng: np.random.Generator) -> str:
    """Fill a template with one wording of each value."""
    noun, verbs = _NOUN[scene.source]
    does, doing = _choose(verbs, rng)
    values = {"pitch": scene.pitch, "motion": scene.motion, "rhythm": scene.rhythm, "background": scene.background}
    words = {name: _choose(_WORDING[value], rng) for name, value in values.items()}
    return template.format(noun=noun, does=does, doing=doing, **words)


def _choose(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]


def _write_clip(folder: Path, index: int, scene: Scene, rng: np.random.Generator) -> str:
    """Render, resample to a rate found in the wild, and write; the file's name comes back."""
    wave = render_scene(scene, rng.uniform(2.0, 3.0), rng)
    rate = int(rng.choice(_STORED_RATES))
    if rate != SAMPLE_RATE:
        wave = soxr.resample(wave, SAMPLE_RATE, rate)
    if rng.random() < 0.25:
        wave = np.stack([wave, wave * rng.uniform(0.5, 1.0)], axis=1)
    file = f"{index:05d}.wav"
    soundfile.write(folder / file, np.round(wave * 32767).astype(np.int16), rate, subtype="PCM_16")
    return file


def _write_captions(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "caption", "synthetic"))
        writer.writerows(rows)
