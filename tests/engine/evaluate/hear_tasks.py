"""Task directories in the form that HEAR's preprocessing leaves: small, of tones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16_000
PITCHES = {"low": 200.0, "high": 3_000.0}


def tone(pitch: float, samples: int, seed: int) -> np.ndarray:
    """A tone with a little noise, float32 `[samples]`."""
    noise = 0.01 * np.random.default_rng(seed).normal(size=samples)
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(samples) / RATE) + noise).astype(np.float32)


def write_sound(folder: Path, name: str, wave: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, wave, RATE)


def write_task(
    directory: Path,
    splits: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str] = tuple(PITCHES),
    **changes: Any,
) -> None:
    """Write everything but the audio."""
    metadata = {
        "task_name": "tones",
        "version": "1.0",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "trainvaltest",
        "sample_duration": 1.0,
        "evaluation": ["top1_acc"],
        "splits": list(splits),
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "task_metadata.json").write_text(json.dumps(metadata | changes))
    rows = [f"{index},{label}" for index, label in enumerate(labels)]
    (directory / "labelvocabulary.csv").write_text("\n".join(["idx,label", *rows]))
    for name, content in splits.items():
        (directory / f"{name}.json").write_text(json.dumps(content))


def write_scenes(directory: Path, splits: Sequence[str], each: int = 16, **changes: Any) -> None:
    """A scene task: is the tone low or high?"""
    names = list(PITCHES)
    contents = {split: {f"{split}{i}.wav": [names[i % 2]] for i in range(each)} for split in splits}
    write_task(directory, contents, **changes)
    for number, split in enumerate(splits):
        for i, (file, (label,)) in enumerate(contents[split].items()):
            write_sound(directory / str(RATE) / split, file, tone(PITCHES[label], RATE, seed=100 * number + i))


def write_events(directory: Path, each: int = 3) -> None:
    """An event task: when does which of two tones sound? Both begin where a patch begins."""
    seconds = 4
    contents: dict[str, dict[str, Any]] = {}
    for number, split in enumerate(("train", "valid", "test")):
        contents[split] = {}
        for i in range(each):
            wave = tone(0.0, seconds * RATE, seed=100 * number + i)
            events = []
            for label, first in (("low", 1 + i), ("high", 12 + i)):
                start, stop = first * 2_560, (first + 7) * 2_560
                wave[start:stop] += tone(PITCHES[label], stop - start, seed=i)
                events.append({"label": label, "start": start / 16, "end": stop / 16})
            contents[split][f"{split}{i}.wav"] = events
            write_sound(directory / str(RATE) / split, f"{split}{i}.wav", wave)
    scores = ["event_onset_200ms_fms", "segment_1s_er"]
    write_task(directory, contents, embedding_type="event", prediction_type="multilabel", evaluation=scores)
