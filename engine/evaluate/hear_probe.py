"""A HEAR task through a model: frozen embeddings, a probe chosen on the validation split, scores on the test split.

As in the HEAR kit: eight probes are tried where the first rotation trains, the one that validates best is trained again
for every other rotation, and the test scores are averaged over the rotations.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ...data.audio import read_audio
from ...errors import InputError
from .datasets.corpus import file_clip
from .hear import HearModel, get_scene_embeddings, get_timestamp_embeddings, timestamps
from .hear_scores import SCENE_SCORES
from .hear_task import HearTask, Rotation, Sound
from .mlp_probe import Examples, FittedProbe, ProbeConfig, fit_best_probe
from .sound_events import (
    EVENT_SCORES,
    LOWER_IS_BETTER,
    SMOOTHINGS,
    Smoothing,
    events_of,
    frame_targets,
    require_sed_eval,
    score_events,
)
from .store import Store

PROBES = tuple(
    ProbeConfig(hidden_layers=layers, learning_rate=rate)
    for layers, rate in itertools.product((1, 2), (3.2e-3, 1e-3, 3.2e-4, 1e-4))
)
"""The probes tried: the HEAR kit's default grid, with one of its two initialisations."""

_SOUNDS_AT_ONCE = 32


@dataclass(frozen=True)
class _Embedded:
    """A sound and its embeddings: ``[D]``, or ``[T, D]`` at ``times`` in milliseconds."""

    sound: Sound
    embedding: Tensor
    times: np.ndarray


@dataclass(frozen=True)
class _Turn:
    """A rotation's probe and its scores on the test split."""

    rotation: Rotation
    probe: FittedProbe
    smoothing: Smoothing | None
    scores: dict[str, float]


def evaluate_hear(
    model: HearModel,
    task: HearTask,
    *,
    probes: Sequence[ProbeConfig] = PROBES,
    store: Store | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Return the task's scores and how they came about, as JSON takes it.

    ``scores`` are means over the rotations, ``deviations`` their standard deviations where there are several; a score
    that is no finite number is None. Scores of the task that are none of ours are named under ``not_computed``.
    ``store`` keeps embeddings and result. Raises InputError where a sound cannot be decoded, none of the scores is
    ours, or sed_eval is missing for an event task.
    """
    known = EVENT_SCORES if task.kind == "event" else tuple(SCENE_SCORES)
    names = [name for name in task.scores if name in known]
    if not names:
        raise InputError(f"task {task.name} is scored by {', '.join(task.scores)}; expected one of {', '.join(known)}")
    if task.kind == "event":
        require_sed_eval()
    store = store or Store()
    sounds = [sound for name in task.splits for sound in task.splits[name]]
    made_from = [repr(task), repr(probes), str(model.fixed_samples), *map(_identity, sounds)]
    return store.record("hear", made_from, lambda: _evaluate(model, task, names, probes, store, progress))


def format_hear(result: dict[str, Any]) -> str:
    """Lay a result out as plain text."""
    lines = [f"{result['task']}: {result['sounds']} sounds, {len(result['missing'])} missing"]
    for name, value in result["scores"].items():
        spread = result["deviations"].get(name)
        figure = "undefined, or infinite" if value is None else f"{value:.4f}"
        lines.append(f"  {name:24} {figure}" + ("" if spread is None else f" ± {spread:.4f} over the folds"))
    if result["missing"]:
        lines.append(f"  missing: {', '.join(result['missing'][:5])}{', …' if len(result['missing']) > 5 else ''}")
    if result["not_computed"]:
        lines.append(f"  not computed: {', '.join(result['not_computed'])}")
    return "\n".join(lines)


def _evaluate(
    model: HearModel, task: HearTask, names: list[str], probes: Sequence[ProbeConfig], store: Store, progress: bool
) -> dict[str, Any]:
    splits = _embed(model, task, store, progress)
    turn_of = _event_turn if task.kind == "event" else _scene_turn
    turns = [turn_of(task, task.rotations[0], splits, names, probes, model.device)]
    turns += [
        turn_of(task, rotation, splits, names, [turns[0].probe.config], model.device) for rotation in task.rotations[1:]
    ]
    table = {name: [turn.scores[name] for turn in turns] for name in names}
    return {
        "task": task.name,
        "embedding_type": task.kind,
        "scores": {name: _number(np.mean(values)) for name, values in table.items()},
        "deviations": {
            name: float(np.std(values, ddof=1))
            for name, values in table.items()
            if len(turns) > 1 and np.isfinite(values).all()
        },
        "turns": [_record(turn) for turn in turns],
        "probe": asdict(turns[0].probe.config),
        "sounds": sum(map(len, task.splits.values())),
        "missing": list(task.missing),
        "not_computed": [name for name in task.scores if name not in names],
        "fixed_seconds": None if model.fixed_samples is None else model.fixed_samples / model.sample_rate,
    }


def _number(value: float | np.floating) -> float | None:
    """What JSON can hold: a class that is separated has an infinite d', one without examples has no score."""
    return float(value) if math.isfinite(value) else None


def _record(turn: _Turn) -> dict[str, Any]:
    return {
        "test": turn.rotation.test,
        "scores": {name: _number(value) for name, value in turn.scores.items()},
        "epoch": turn.probe.epoch,
        "validation_score": turn.probe.validation_score,
        "smoothing": None if turn.smoothing is None else asdict(turn.smoothing),
    }


def _identity(sound: Sound) -> str:
    """What changes when the sound's file does."""
    return file_clip(sound.path.name, sound.path).identity


def _embed(model: HearModel, task: HearTask, store: Store, progress: bool) -> dict[str, list[_Embedded]]:
    """Embed the sounds of every split: scenes in groups, events sound by sound, for theirs are minutes long."""
    by_time = task.kind == "event"
    at_once = 1 if by_time else _SOUNDS_AT_ONCE
    embedded: dict[str, list[_Embedded]] = {name: [] for name in task.splits}
    groups = [
        (name, sounds[start : start + at_once])
        for name, sounds in task.splits.items()
        for start in range(0, len(sounds), at_once)
    ]
    for name, group in track(groups, "embedding sounds", disable=not progress, transient=True):
        made_from = [str(model.fixed_samples), *map(_identity, group)]
        if by_time:
            frames = store.array("hear-event", made_from, partial(_embed_events, model, group[0]))
            times = timestamps(len(frames)).double().numpy()
            embedded[name].append(_Embedded(group[0], torch.from_numpy(frames), times))
        else:
            rows = store.array("hear-scene", made_from, partial(_embed_scenes, model, group))
            embedded[name] += [
                _Embedded(sound, torch.from_numpy(row), np.zeros(0)) for sound, row in zip(group, rows, strict=True)
            ]
    return embedded


def _embed_events(model: HearModel, sound: Sound) -> np.ndarray:
    """Return ``[T, D]``, an embedding every 160 ms."""
    audio = torch.from_numpy(read_audio(sound.path))[None]
    return get_timestamp_embeddings(audio, model)[0][0].cpu().numpy()


def _embed_scenes(model: HearModel, sounds: Sequence[Sound]) -> np.ndarray:
    """Return ``[n, D]``; sounds of one length go through the model together."""
    waves = [torch.from_numpy(read_audio(sound.path)) for sound in sounds]
    rows_of: dict[int, list[int]] = {}
    for row, wave in enumerate(waves):
        rows_of.setdefault(len(wave), []).append(row)
    embeddings = np.zeros((len(sounds), model.scene_embedding_size), np.float32)
    for rows in rows_of.values():
        embeddings[rows] = get_scene_embeddings(torch.stack([waves[row] for row in rows]), model).cpu().numpy()
    return embeddings


def _scene_turn(
    task: HearTask,
    rotation: Rotation,
    splits: dict[str, list[_Embedded]],
    names: Sequence[str],
    probes: Sequence[ProbeConfig],
    device: torch.device,
) -> _Turn:
    number = {label: index for index, label in enumerate(task.labels)}

    def gather(split_names: Sequence[str]) -> tuple[Examples, np.ndarray]:
        items = [item for name in split_names for item in splits[name]]
        hot = np.zeros((len(items), len(task.labels)), np.float32)
        for row, item in enumerate(items):
            hot[row, [number[label] for label in item.sound.labels]] = 1.0
        targets = torch.from_numpy(hot if task.multilabel else hot.argmax(axis=1))
        return Examples(torch.stack([item.embedding for item in items]), targets), hot

    def probabilities(logits: Tensor) -> np.ndarray:
        return (logits.double().sigmoid() if task.multilabel else logits.double().softmax(dim=1)).numpy()

    train, _ = gather(rotation.train)
    valid, valid_hot = gather([rotation.valid])
    test, test_hot = gather([rotation.test])
    first = SCENE_SCORES[names[0]]
    probe = fit_best_probe(
        train, valid, len(task.labels), lambda logits: first(probabilities(logits), valid_hot), probes, device
    )
    given = probabilities(probe.logits(test.features))
    return _Turn(rotation, probe, None, {name: SCENE_SCORES[name](given, test_hot) for name in names})


def _event_turn(
    task: HearTask,
    rotation: Rotation,
    splits: dict[str, list[_Embedded]],
    names: Sequence[str],
    probes: Sequence[ProbeConfig],
    device: torch.device,
) -> _Turn:
    """Fit on frames, stop by the validation loss, then choose the smoothing by the first score on that split."""

    def gather(split_names: Sequence[str]) -> Examples:
        items = [item for name in split_names for item in splits[name]]
        targets = [frame_targets(item.sound.events, item.times, task.labels) for item in items]
        return Examples(torch.cat([item.embedding for item in items]), torch.from_numpy(np.concatenate(targets)))

    def scorer(split: str, probe: FittedProbe) -> Callable[[str, Smoothing], float]:
        true = {item.sound.path.name: item.sound.events for item in splits[split]}
        given = [probe.logits(item.embedding).double().sigmoid().numpy() for item in splits[split]]

        def score(name: str, smoothing: Smoothing) -> float:
            found = {
                item.sound.path.name: events_of(frames, item.times, task.labels, smoothing)
                for item, frames in zip(splits[split], given, strict=True)
            }
            return score_events(name, found, true, task.labels)

        return score

    valid = gather([rotation.valid])
    probe = fit_best_probe(
        gather(rotation.train),
        valid,
        len(task.labels),
        lambda logits: -float(binary_cross_entropy_with_logits(logits, valid.targets)),
        probes,
        device,
    )
    sign = -1.0 if names[0] in LOWER_IS_BETTER else 1.0
    on_valid, on_test = scorer(rotation.valid, probe), scorer(rotation.test, probe)
    smoothing = max(SMOOTHINGS, key=lambda candidate: sign * on_valid(names[0], candidate))
    return _Turn(rotation, probe, smoothing, {name: on_test(name, smoothing) for name in names})
