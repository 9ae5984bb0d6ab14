"""Every evaluation whose dataset is there: one JSON, one Markdown table, the pictures; what is computed is kept."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...json_file import write_json
from ..inference import Cacophony
from .authors_figures import SOURCE
from .store import Store
from .tasks import TASKS, CannotRun, Outcome, Subject, Task

JSON_NAME = "evaluation.json"
TABLE_NAME = "evaluation.md"

_NOT_KNOWN = "not known"
_DEPTH = 4
"""Folders between the data's root and a dataset, the dataset's own included: HEAR's archives nest theirs so deep."""


@dataclass
class Evaluation:
    """What was evaluated so far; title of a task and its dataset's folder → its part, or why it was not run."""

    model: str
    checkpoint: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)


def find_tasks(data_root: Path, tasks: Sequence[Task] = TASKS) -> list[tuple[Task, Path]]:
    """Return the tasks whose dataset is ``data_root`` or a folder at most four deep in it.

    A folder inside one that a task already has is part of it. Raises InputError where there is none, naming what was
    looked for.
    """
    if not data_root.is_dir():
        raise InputError(f"{data_root}: no such directory; expected one that holds datasets")
    folders = [data_root, *sorted(_folders(data_root, _DEPTH))]
    found: list[tuple[Task, Path]] = []
    for task in tasks:
        fitting = [folder for folder in folders if task.fits(folder)]
        found += [(task, folder) for folder in fitting if not set(fitting) & set(folder.parents)]
    if not found:
        names = ", ".join(sorted({task.dataset for task in tasks}))
        raise InputError(
            f"{data_root}: holds no dataset in its authors' layout, {_DEPTH} folders deep; looked for {names}"
        )
    return found


def _folders(directory: Path, depth: int) -> Iterator[Path]:
    """Yield the folders in ``directory`` that may be read, and those in them, so many deep."""
    try:
        with os.scandir(directory) as entries:
            inside = [Path(entry.path) for entry in entries if entry.is_dir()]
    except PermissionError:
        return
    for folder in inside:
        yield folder
        if depth > 1:
            yield from _folders(folder, depth - 1)


def evaluate_all(
    model: Cacophony,
    model_directory: Path,
    data_root: Path,
    out: Path,
    *,
    progress: bool = True,
    tasks: Sequence[Task] = TASKS,
) -> Evaluation:
    """Run every task whose dataset is under ``data_root``; write the report into ``out`` after each.

    Embeddings and captions are kept in ``out/computed``: a second call takes them from there, as long as checkpoint and
    files are the same. A task that this installation cannot run is reported as such. Raises InputError where no dataset
    is found, and for a dataset that is damaged.
    """
    found = find_tasks(data_root, tasks)
    out.mkdir(parents=True, exist_ok=True)
    store = Store.of_model(out / "computed", model_directory)
    subject = Subject(model, model_directory, store, progress)
    evaluation = Evaluation(str(model_directory), store.checkpoint)
    for number, (task, folder) in enumerate(found):
        title = _title(task, folder, data_root)
        if progress:
            print(f"{number + 1}/{len(found)} {title}", file=sys.stderr)
        before = sum(task is earlier for earlier, _ in found[:number])
        picture = out / f"{task.name}-{task.dataset}{f'-{before + 1}' if before else ''}.png"
        try:
            evaluation.outcomes[title] = task.run(subject, folder, picture)
        except CannotRun as reason:
            evaluation.not_run[title] = str(reason)
        write_json(out / JSON_NAME, _as_json(evaluation))
        (out / TABLE_NAME).write_text(as_markdown(evaluation), encoding="utf-8")
    return evaluation


def as_markdown(evaluation: Evaluation) -> str:
    """Lay the evaluation out as Markdown: a table per task, beside the authors' figures where they publish any."""
    lines = [f"# Evaluation of {evaluation.model}", "", f"Checkpoint {evaluation.checkpoint[:16]}.", ""]
    for title, outcome in evaluation.outcomes.items():
        lines += [f"## {title}", "", f"{outcome.corpus}.", ""]
        lines += ["| figure | value | 95 % interval | authors |", "|---|---|---|---|"]
        for name, (value, interval) in outcome.figures.items():
            between = "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
            theirs = f"{outcome.authors[name]:.3f}" if name in outcome.authors else _NOT_KNOWN
            lines.append(f"| {name} | {value:.3f} | {between} | {theirs} |")
        lines += ["", *outcome.notes, ""] if outcome.notes else [""]
    for title, reason in evaluation.not_run.items():
        lines += [f"## {title}", "", f"Not run: {reason}.", ""]
    lines += [f"Authors: {SOURCE}; {_NOT_KNOWN}: not among the figures there.", ""]
    return "\n".join(lines)


def _as_json(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "model": evaluation.model,
        "checkpoint": evaluation.checkpoint,
        "results": {title: outcome.record for title, outcome in evaluation.outcomes.items()},
        "authors": {title: dict(outcome.authors) for title, outcome in evaluation.outcomes.items()},
        "authors_source": SOURCE,
        "not_run": evaluation.not_run,
    }


def _title(task: Task, folder: Path, data_root: Path) -> str:
    place = folder.relative_to(data_root)
    name = task.name if task.name == task.dataset else f"{task.name}: {task.dataset}"
    return name + (f" ({place})" if str(place) != "." else "")
