"""No evaluation clip in training: each clip of a manifest is compared with those of the evaluation sets.

By id, then by the samples, then by a fingerprint, then by the embedding of a model. A clip that a pass finds gets the
reason in `excluded`; for each pass the nearest evaluation clip goes into a report, found or not.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import InputError
from .actors import Actors
from .audio_features import AudioFeatures, Embedder, audio_features
from .clip_ids import Namespace
from .evaluation_clips import Evaluation, EvaluationParts, compute, load
from .fingerprint import PHASES
from .fingerprint_index import Nearest
from .id_lists import EvaluationIds
from .manifest import Manifest, Row, arrow, part_name, write_part, write_table
from .parts import run_parts

SAME_ID = "evaluation clip: same id"
SAME_SAMPLES = "evaluation clip: same samples"
SAME_SOUND = "evaluation clip: same fingerprint"
NEAR_DUPLICATE = "evaluation clip: near duplicate"
UNREADABLE = "not compared: "
"""Before the reason why a clip could not be decoded: what was not compared may not be trained on."""

REASON_OF_PASS = {"id": SAME_ID, "pcm": SAME_SAMPLES, "fingerprint": SAME_SOUND, "embedding": NEAR_DUPLICATE}
"""The passes in their order: a clip that several find has the reason of the first."""

_DIGITS = 4  # of a score: more would show in which batch, or on how many threads, a model computed it


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """From where on two clips are taken for the same."""

    similarity: float = 0.35
    """Cosine of two fingerprints; lossy copies are above it, other clips far below."""
    cosine: float = 0.95
    """Of two embeddings. It depends on the model: look at the histogram of the report."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0.0 < value <= 1.0:
                raise InputError(f"{name} is {value}; expected a cosine above 0 and up to 1")


@dataclass
class Comparison:
    """What a stage does with a part of a manifest."""

    parts: EvaluationParts
    evaluation: Evaluation
    ids: EvaluationIds
    namespaces: Mapping[str, Namespace]
    windows: bool
    thresholds: Thresholds
    embedder: Embedder | None
    _found: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, rows: list[Row], counts: Counter[str]) -> list[Row]:
        """Fill `excluded` of the rows where it is empty, and count them as `source: reason`."""
        self._found = []
        open_rows = [row for row in rows if not row["excluded"]]
        for row in open_rows:
            if where := self.ids.find(row, self.namespaces, windows=self.windows):
                row["excluded"] = SAME_ID
                self._add(row, "id", where, 1.0, found=True)
        if self.parts.passes.any:
            self._compare_audio([row for row in open_rows if not row["excluded"]], counts)
        for row in open_rows:
            counts[f"{row['source']}: {row['excluded'] or 'kept'}"] += 1
        if already := len(rows) - len(open_rows):
            counts["excluded before"] += already
        return rows

    def report(self) -> Any:
        """Of each clip of the last part and each pass the nearest evaluation clip, in the order of the rows."""
        return arrow().Table.from_pylist(self._found, schema=report_schema())

    def _compare_audio(self, rows: list[Row], counts: Counter[str]) -> None:
        def failed(number: int, reason: str) -> None:
            rows[number]["excluded"] = UNREADABLE + reason

        near: dict[int, dict[str, tuple[int, float]]] = {}
        paths, seconds = [row["path"] for row in rows], [row["seconds"] for row in rows]
        every = audio_features(paths, seconds, self.parts.passes, self.embedder, failed, phases=PHASES)
        for batch in every:
            embeddings = self.evaluation.nearest_embeddings([features for _, features in batch])
            for (number, features), embedding in zip(batch, embeddings, strict=True):
                near[number] = self._nearest(features, embedding)
                if features.phases and features.phases[0].plain:
                    counts["too plain for a fingerprint"] += 1
        for number in sorted(near):
            for name, (clip, score) in near[number].items():
                found = score >= self._least(name)
                self._add(rows[number], name, self.evaluation.names[clip], score, found=found)
                if found and not rows[number]["excluded"]:
                    rows[number]["excluded"] = REASON_OF_PASS[name]

    def _nearest(self, features: AudioFeatures, embedding: Nearest | None) -> dict[str, tuple[int, float]]:
        """By pass: the nearest evaluation clip and its score, of those passes that have one."""
        near: dict[str, tuple[int, float]] = {}
        if (clip := self.evaluation.same_samples(features)) is not None:
            near["pcm"] = clip, 1.0
        for name, nearest in (("fingerprint", self.evaluation.same_sound(features)), ("embedding", embedding)):
            if nearest:
                near[name] = nearest.clip, round(nearest.similarity, _DIGITS)
        return near

    def _least(self, name: str) -> float:
        return {"pcm": 1.0, "fingerprint": self.thresholds.similarity, "embedding": self.thresholds.cosine}[name]

    def _add(self, row: Row, name: str, clip: str, score: float, *, found: bool) -> None:
        entry = {"source": row["source"], "id": row["id"], "path": row["path"], "evaluation_clip": clip}
        self._found.append(entry | {"pass": name, "score": score, "found": found})


def report_name(number: int) -> str:
    """What lies beside a part of the result: `report-00000.parquet` and so on."""
    return f"report-{number:05d}.parquet"


def report_schema() -> Any:
    """The Arrow schema of the tables beside the parts."""
    pa = arrow()
    texts = [(name, pa.string()) for name in ("source", "id", "path", "evaluation_clip", "pass")]
    return pa.schema([*texts, ("score", pa.float64()), ("found", pa.bool_())])


def exclude(
    source: Manifest,
    out: Path,
    *,
    ids: EvaluationIds,
    parts: EvaluationParts,
    namespaces: Mapping[str, Namespace],
    windows: bool,
    thresholds: Thresholds,
    actors: Actors,
    progress: bool = True,
) -> Manifest:
    """Write to `out` the rows of `source` with `excluded` filled, and a report beside each part.

    Computes those parts of the evaluation that are not there. Raises as `run_stage` of `parts`.
    """
    settings = {
        "ids": {"freesound": len(ids.freesound), "youtube": len(ids.youtube), "digest": ids.digest()},
        "evaluation": parts.digest(),
        "namespaces": dict(sorted(namespaces.items())),
        "windows": windows,
        "thresholds": asdict(thresholds),
    }
    plan = {"stage": "exclude", "settings": settings | {"source": source.provenance}}
    make = partial(_make, parts, ids, dict(namespaces), windows, thresholds)

    def worker_of(folder: Path) -> ReportingWorker:
        compute(parts, actors, progress=progress)
        return ReportingWorker(source, folder, make)

    return run_parts(source, out, plan, worker_of, actors, progress)


@dataclass(frozen=True)
class ReportingWorker:
    """Works on one part after another, and leaves the report of each beside it."""

    source: Manifest
    folder: Path
    make: Callable[[], Comparison]

    def start(self) -> Callable[[int], int]:
        """Load everything; the result does part `number` and returns how many rows it had."""
        compare = self.make()

        def run(number: int) -> int:
            counts = Counter[str]()
            rows = compare(self.source.part(number), counts)
            write_table(self.folder / report_name(number), compare.report())
            write_part(self.folder / part_name(number), rows, counts)
            return len(rows)

        return run


def _make(
    parts: EvaluationParts,
    ids: EvaluationIds,
    namespaces: dict[str, Namespace],
    windows: bool,
    thresholds: Thresholds,
) -> Comparison:
    embedder = parts.passes.make_embedder() if parts.passes.make_embedder else None
    return Comparison(parts, load(parts), ids, namespaces, windows, thresholds, embedder)
