"""What `cacophony evaluate all` can run: each task knows its dataset and gives its part of the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..embedding_figures import confusion_matrix
from ..inference import Cacophony
from .bootstrap import Interval
from .caption_metrics import check_installed
from .captioning import evaluate_captioning
from .datasets.corpus import CaptionCorpus, LabelCorpus
from .datasets.layouts import CAPTIONED, LABELLED, Layout
from .embedding import Decoding
from .report import corpus_line
from .retrieval import evaluate_retrieval
from .store import Store
from .zero_shot import evaluate_zero_shot


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


Runner = Callable[[Cacophony, Path, Path, Store, bool], Outcome]
"""Of model, dataset directory, file for a picture if the task draws one, store, and whether to show progress."""


@dataclass(frozen=True)
class Task:
    """One evaluation of one dataset."""

    name: str
    dataset: str
    fits: Callable[[Path], bool]
    run: Runner
    unavailable: Callable[[], None] = field(default=lambda: None)
    """Raises InputError where the task cannot run on this installation."""


def _retrieval(layout: Layout[CaptionCorpus]) -> Runner:
    def run(model: Cacophony, directory: Path, picture: Path, store: Store, progress: bool) -> Outcome:
        result = evaluate_retrieval(model, layout.read(directory), store=store, progress=progress)
        metrics = result.metrics
        figures = {
            f"{title} {name}": (value, intervals[name])
            for title, scores, intervals in (
                ("text to audio", metrics["text_to_audio"], metrics["intervals"]["text_to_audio"]),
                ("audio to text", metrics["audio_to_text"], metrics["intervals"]["audio_to_text"]),
            )
            for name, value in scores.items()
        }
        return Outcome(corpus_line(result.corpus), result.record(), figures)

    return run


def _zero_shot(layout: Layout[LabelCorpus]) -> Runner:
    def run(model: Cacophony, directory: Path, picture: Path, store: Store, progress: bool) -> Outcome:
        result = evaluate_zero_shot(model, layout.read(directory), store=store, progress=progress)
        metrics = result.metrics
        title = f"{result.corpus.dataset}, top-1 {metrics['top_1']:.1%}"
        confusion_matrix(picture, metrics["confusion"], result.corpus.classes, title)
        figures = {
            name: (value, metrics["intervals"][name])
            for name, value in (("top_1", metrics["top_1"]), ("top_5", metrics["top_5"]))
        }
        return Outcome(corpus_line(result.corpus), result.record(), figures, (f"Picture: {picture.name}.",))

    return run


def _captioning(layout: Layout[CaptionCorpus]) -> Runner:
    def run(model: Cacophony, directory: Path, picture: Path, store: Store, progress: bool) -> Outcome:
        result = evaluate_captioning(model, layout.read(directory), Decoding(), store=store, progress=progress)
        metrics = result.metrics
        notes = [f"{name} was not computed: {reason}." for name, reason in metrics.not_computed.items()]
        notes.append(f"Captions were split into words by {metrics.tokenization}.")
        figures = {name: (value, None) for name, value in metrics.scores.items()}
        return Outcome(corpus_line(result.corpus), result.record(), figures, tuple(notes))

    return run


TASKS: tuple[Task, ...] = (
    *(Task("retrieval", name, layout.fits, _retrieval(layout)) for name, layout in CAPTIONED.items()),
    *(Task("zero-shot", name, layout.fits, _zero_shot(layout)) for name, layout in LABELLED.items()),
    *(
        Task("caption", name, layout.fits, _captioning(layout), unavailable=check_installed)
        for name, layout in CAPTIONED.items()
    ),
)
"""In the order in which they run."""
