"""What `cacophony evaluate all` can run: each task knows its dataset and gives its part of the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..checkpoint import checkpoints
from ..embedding_figures import confusion_matrix, embedding_map, gap_curves
from ..inference import Cacophony
from ..projection import PROJECTIONS, require_umap
from .aqa import KINDS, PROBE, evaluate_aqa
from .aqa_layouts import MARKERS, Dataset, read_questions
from .authors_figures import published, published_hear_accuracy
from .bootstrap import Interval
from .caption_metrics import check_installed
from .captioning import evaluate_captioning
from .datasets.corpus import CaptionCorpus, LabelCorpus
from .datasets.layouts import CAPTIONED, LABELLED, Layout
from .embedding import Decoding
from .gap import Gap, evaluate_gap, measure_gap
from .hear import HearModel
from .hear_probe import PROBES, evaluate_hear
from .hear_task import METADATA_FILE, read_task
from .report import corpus_line, corpus_record
from .retrieval import evaluate_retrieval
from .sound_events import require_sed_eval
from .store import Store
from .zero_shot import evaluate_zero_shot

_ACCURACIES = ("top1_acc", "pitch_acc")


class CannotRun(Exception):
    """Why a task cannot run on this installation."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and how."""

    model: Cacophony
    directory: Path
    """The run, or the converted checkpoint, that the model is from."""
    store: Store
    """Keeps what is computed from the model."""
    progress: bool
    """Whether to show progress bars."""


@dataclass(frozen=True)
class Outcome:
    """A task's part of the report."""

    corpus: str
    """A line about the clips found and missing."""
    record: dict[str, Any]
    """Everything, as JSON takes it."""
    figures: Mapping[str, tuple[float, Interval | None]]
    """Name → value and, where there is one, its interval: the rows of the table."""
    notes: tuple[str, ...] = ()
    """Sentences below the table."""
    authors: Mapping[str, float] = field(default_factory=dict)
    """The authors' figures by name, where they publish them."""


Runner = Callable[[Subject, Path, Path], Outcome]
"""Of subject, dataset directory, and file for a picture if the task draws one; raises CannotRun."""


@dataclass(frozen=True)
class Task:
    """One evaluation of one dataset."""

    name: str
    dataset: str
    fits: Callable[[Path], bool]
    run: Runner


def _retrieval(layout: Layout[CaptionCorpus]) -> Runner:
    def run(subject: Subject, directory: Path, picture: Path) -> Outcome:
        corpus = layout.read(directory)
        result = evaluate_retrieval(subject.model, corpus, store=subject.store, progress=subject.progress)
        metrics = result.metrics
        figures = {
            f"{title} {name}": (value, intervals[name])
            for title, scores, intervals in (
                ("text to audio", metrics["text_to_audio"], metrics["intervals"]["text_to_audio"]),
                ("audio to text", metrics["audio_to_text"], metrics["intervals"]["audio_to_text"]),
            )
            for name, value in scores.items()
        }
        authors = published("retrieval", corpus.dataset)
        return Outcome(corpus_line(corpus), result.record(), figures, authors=authors)

    return run


def _zero_shot(layout: Layout[LabelCorpus]) -> Runner:
    def run(subject: Subject, directory: Path, picture: Path) -> Outcome:
        corpus = layout.read(directory)
        result = evaluate_zero_shot(subject.model, corpus, store=subject.store, progress=subject.progress)
        metrics = result.metrics
        title = f"{corpus.dataset}, top-1 {metrics['top_1']:.1%}"
        confusion_matrix(picture, metrics["confusion"], corpus.classes, title)
        figures = {
            name: (value, metrics["intervals"][name])
            for name, value in (("top_1", metrics["top_1"]), ("top_5", metrics["top_5"]))
        }
        notes = (f"Picture: {picture.name}.",)
        return Outcome(corpus_line(corpus), result.record(), figures, notes, published("zero-shot", corpus.dataset))

    return run


def _captioning(layout: Layout[CaptionCorpus]) -> Runner:
    def run(subject: Subject, directory: Path, picture: Path) -> Outcome:
        _or_cannot_run(check_installed)
        _or_cannot_run(subject.model.model.require_captions)
        result = evaluate_captioning(
            subject.model, layout.read(directory), Decoding(), store=subject.store, progress=subject.progress
        )
        metrics = result.metrics
        notes = [f"{name} was not computed: {reason}." for name, reason in metrics.not_computed.items()]
        notes.append(f"Captions were split into words by {metrics.tokenization}.")
        figures = {name: (value, None) for name, value in metrics.scores.items()}
        return Outcome(corpus_line(result.corpus), result.record(), figures, tuple(notes))

    return run


def _aqa(dataset: Dataset) -> Runner:
    def run(subject: Subject, directory: Path, picture: Path) -> Outcome:
        questions = read_questions(directory, dataset)
        result = evaluate_aqa(subject.model, questions, probe=PROBE, store=subject.store, progress=subject.progress)
        missing = sum(map(len, result["missing"].values()))
        kinds = {kind: result[kind] for kind in KINDS if result[kind] is not None}
        figures = {
            f"{kind} {name}": (scores[name], None)
            for kind, scores in kinds.items()
            for name in scores
            if name in ("accuracy", "commonest") or name.startswith("r@")
        }
        notes = [
            f"Questions of kind {kind} are not in all of train, val and test." for kind in KINDS if kind not in kinds
        ]
        notes += [
            f"{kind}: {scores['questions']} questions, {scores['answers']} answers; commonest is the accuracy of the "
            "answer that train has most."
            for kind, scores in kinds.items()
        ]
        line = f"{dataset}: {result['clips']} clips found, {missing} missing"
        return Outcome(line, result, figures, tuple(notes))

    return run


def _hear(subject: Subject, directory: Path, picture: Path) -> Outcome:
    task = read_task(directory)
    if task.kind == "event":
        _or_cannot_run(require_sed_eval)
    result = evaluate_hear(
        HearModel(subject.model.model), task, probes=PROBES, store=subject.store, progress=subject.progress
    )
    known = {name: value for name, value in result["scores"].items() if value is not None}
    notes = [f"{name} ± {spread:.3f} over the folds." for name, spread in result["deviations"].items()]
    notes += [f"{name} is undefined, or infinite." for name in result["scores"] if name not in known]
    notes += [f"{name} was not computed: it is none of our scores." for name in result["not_computed"]]
    theirs = published_hear_accuracy(directory.name)
    authors = {task.scores[0]: theirs} if theirs is not None and task.scores[0] in _ACCURACIES else {}
    line = f"{task.name}: {result['sounds']} sounds found, {len(result['missing'])} missing"
    return Outcome(line, result, {name: (value, None) for name, value in known.items()}, tuple(notes), authors)


def _gap(layout: Layout[CaptionCorpus]) -> Runner:
    def run(subject: Subject, directory: Path, picture: Path) -> Outcome:
        corpus = layout.read(directory)
        points, last = _gaps(subject, corpus)
        notes: list[str] = []
        if points:
            gap_curves(picture, {str(subject.directory): points}, f"Modality gap, {corpus.dataset}")
            figures = {f"gap at step {step}": (value, None) for step, value in points}
            notes.append(f"Picture: {picture.name}.")
        else:
            figures = {"gap": (last.gap, None)}
            notes.append(f"{subject.directory.name} holds no checkpoints: the gap is that of its weights alone.")
        umap = picture.with_name(f"{picture.stem}-umap.png")
        try:
            require_umap()
            embedding_map(umap, last.audio_embeddings, last.paired_text, None, PROJECTIONS["umap"])
            notes.append(f"Picture: {umap.name}.")
        except InputError as reason:
            notes.append(f"{umap.name} was not drawn: {reason}.")
        record = {
            **corpus_record(corpus),
            "checkpoints": [{"step": step, "gap": value} for step, value in points],
            "gap": last.gap,
            "captions": len(last.text_embeddings),
        }
        return Outcome(corpus_line(corpus), record, figures, tuple(notes))

    return run


def _gaps(subject: Subject, corpus: CaptionCorpus) -> tuple[list[tuple[float, float]], Gap]:
    """Return (step, gap) of the run's checkpoints, and all about the last one, or the weights where there is none."""
    if not checkpoints(subject.directory):
        return [], measure_gap(subject.model, corpus, subject.store, progress=subject.progress)
    points: list[tuple[float, float]] = []
    last: Gap | None = None
    for step, last in evaluate_gap(
        subject.directory,
        corpus,
        store=subject.store,
        device=str(subject.model.device),
        batch_size=subject.model.batch_size,
        progress=subject.progress,
    ):
        points.append((step, last.gap))
    assert last is not None
    return points, last


def _or_cannot_run(require: Callable[[], Any]) -> None:
    try:
        require()
    except InputError as reason:
        raise CannotRun(str(reason)) from None


def _holds(*markers: str) -> Callable[[Path], bool]:
    return lambda directory: any((directory / marker).is_file() for marker in markers)


TASKS: tuple[Task, ...] = (
    *(Task("retrieval", name, layout.fits, _retrieval(layout)) for name, layout in CAPTIONED.items()),
    *(Task("zero-shot", name, layout.fits, _zero_shot(layout)) for name, layout in LABELLED.items()),
    *(Task("caption", name, layout.fits, _captioning(layout)) for name, layout in CAPTIONED.items()),
    *(Task("aqa", name, _holds(*markers), _aqa(name)) for name, markers in MARKERS.items()),
    Task("hear", "hear", _holds(METADATA_FILE), _hear),
    *(Task("gap", name, layout.fits, _gap(layout)) for name, layout in CAPTIONED.items()),
)
"""In the order in which they run."""
