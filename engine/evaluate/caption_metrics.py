"""Captioning metrics, computed by pycocoevalcap (the extra `evaluate`).

BLEU, ROUGE-L and CIDEr are Python; METEOR and SPICE are Java programs, SPICE with models of its own besides. What could
not be computed is named with the reason, never left out in silence.
"""

import contextlib
import importlib.util
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError
from .caption_tokens import Tokenization, has_java, tokenize

_PACKAGE = "pycocoevalcap"
_SPICE_MODELS = ("lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar")
_SPICE_ARCHIVE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
# SPICE keeps parses through FST, which looks into these packages; from Java 16 on they are closed unless opened.
# A Java older than 9, which knows no such options, does not read the variable.
_JAVA_OPTIONS = "JDK_JAVA_OPTIONS"
_OPENED = " ".join(
    f"--add-opens=java.base/java.{package}=ALL-UNNAMED"
    for package in ("lang", "math", "net", "nio", "text", "util", "util.concurrent")
)
_NO_JAVA = "needs Java, and there is no `java` on the path"


@dataclass(frozen=True)
class CaptionMetrics:
    """Scores over a corpus, and why others are not among them."""

    scores: dict[str, float]
    """`bleu_1` … `bleu_4`, `rouge_l`, `cider`; where possible `meteor`, `spice`, `spider`."""
    not_computed: dict[str, str]
    """Name → reason."""
    tokenization: Tokenization
    """What split the captions into words: figures of different ones should not be compared."""


def check_installed(tokenization: Tokenization | None = None) -> None:
    """Raise InputError unless pycocoevalcap is installed and, for `ptb`, Java."""
    if importlib.util.find_spec(_PACKAGE) is None:
        raise InputError(f"captioning metrics need {_PACKAGE}; run pip install 'cacophony-engine[evaluate]'")
    if tokenization == "ptb" and not has_java():
        raise InputError("the PTB tokenizer needs Java, and there is no `java` on the path; use --tokenizer rules")


def caption_metrics(
    candidates: Sequence[str], references: Sequence[Sequence[str]], tokenization: Tokenization | None = None
) -> CaptionMetrics:
    """Score one candidate caption per clip against the clip's reference captions.

    Args:
        candidates: N captions; an empty one scores 0.
        references: of each clip at least one caption.
        tokenization: `ptb` needs Java; None takes it where Java is, and `rules` otherwise.

    Raises:
        InputError: pycocoevalcap or a Java asked for is not there, or the arguments do not fit each other.
    """
    check_installed(tokenization)
    if not candidates or len(candidates) != len(references) or not all(references):
        raise InputError(f"{len(candidates)} captions for {len(references)} clips; expected one, and references, each")
    how: Tokenization = tokenization or ("ptb" if has_java() else "rules")
    hypotheses, truths = _tables(candidates, references, how)
    scores = _python_scores(hypotheses, truths)
    not_computed: dict[str, str] = {}
    for name, compute in (("meteor", _meteor), ("spice", _spice)):
        try:
            scores[name] = compute(hypotheses, truths)
        except _Unavailable as reason:
            not_computed[name] = str(reason)
    if "spice" in scores:
        scores["spider"] = (scores["cider"] + scores["spice"]) / 2
    else:
        not_computed["spider"] = "is the mean of CIDEr and SPICE"
    return CaptionMetrics(scores, not_computed, how)


def format_caption_metrics(metrics: CaptionMetrics) -> str:
    """Lay the metrics out as plain text, with what was not computed and why."""
    how = "the PTB tokenizer" if metrics.tokenization == "ptb" else "rules like the PTB tokenizer's, without Java"
    lines = [f"{name:<8} {value:.3f}" for name, value in metrics.scores.items()]
    lines += [f"{name:<8} not computed: {reason}" for name, reason in metrics.not_computed.items()]
    return "\n".join([*lines, f"captions were split into words by {how}"])


Table = dict[int, list[str]]


class _Unavailable(Exception):
    """Why a metric cannot be computed here."""


def _tables(candidates: Sequence[str], references: Sequence[Sequence[str]], how: Tokenization) -> tuple[Table, Table]:
    counts = [len(texts) for texts in references]
    words = tokenize([*candidates, *(text for texts in references for text in texts)], how)
    hypotheses = {row: [text] for row, text in enumerate(words[: len(candidates)])}
    ends = len(candidates) + np.cumsum([0, *counts])
    return hypotheses, {row: words[ends[row] : ends[row + 1]] for row in range(len(counts))}


def _python_scores(hypotheses: Table, truths: Table) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu  # pyright: ignore[reportMissingImports]
    from pycocoevalcap.cider.cider import Cider  # pyright: ignore[reportMissingImports]
    from pycocoevalcap.rouge.rouge import Rouge  # pyright: ignore[reportMissingImports]

    bleu, _ = Bleu(4).compute_score(truths, hypotheses, verbose=0)
    scores = {f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)}
    scores["rouge_l"] = float(Rouge().compute_score(truths, hypotheses)[0])
    scores["cider"] = float(Cider().compute_score(truths, hypotheses)[0])
    return scores


def _meteor(hypotheses: Table, truths: Table) -> float:
    from pycocoevalcap.meteor.meteor import Meteor  # pyright: ignore[reportMissingImports]

    if not has_java():
        raise _Unavailable(_NO_JAVA)
    meteor = None
    try:
        meteor = Meteor()
        return float(meteor.compute_score(truths, hypotheses)[0])
    except (OSError, ValueError) as error:
        raise _failed(error) from None
    finally:
        if meteor is not None:
            # After a failure it is left locked, and its destructor would wait for ever; pipes it leaves open always.
            if meteor.lock.locked():
                meteor.lock.release()
            for pipe in filter(None, (meteor.meteor_p.stdout, meteor.meteor_p.stderr)):
                pipe.close()


def _spice(hypotheses: Table, truths: Table) -> float:
    from pycocoevalcap import spice  # pyright: ignore[reportMissingImports]
    from pycocoevalcap.spice.spice import Spice  # pyright: ignore[reportMissingImports]

    if not has_java():
        raise _Unavailable(_NO_JAVA)
    home = Path(spice.__path__[0])
    if not all((home / name).is_file() for name in _SPICE_MODELS):
        raise _Unavailable(
            f"needs {' and '.join(Path(name).name for name in _SPICE_MODELS)} in {home / 'lib'}; to download them run "
            "python -c 'from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get; get()', or "
            f"copy them there from {_SPICE_ARCHIVE}"
        )
    try:
        with _java_opened():
            return float(Spice().compute_score(truths, hypotheses)[0])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise _failed(error) from None


@contextlib.contextmanager
def _java_opened() -> Iterator[None]:
    """Let Java programs that are started look into the packages of Java's own that SPICE needs."""
    before = os.environ.get(_JAVA_OPTIONS)
    os.environ[_JAVA_OPTIONS] = _OPENED if before is None else f"{before} {_OPENED}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_JAVA_OPTIONS]
        else:
            os.environ[_JAVA_OPTIONS] = before


def _failed(error: Exception) -> _Unavailable:
    return _Unavailable(f"its Java program failed: {' '.join(str(error).split())[:160]}")
