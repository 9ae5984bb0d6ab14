"""Answers to questions about audio: a classifier on the frozen embeddings of clip and question, concatenated.

Yes-or-no questions and questions with a word for an answer have a classifier each: four layers, trained on the train
split, stopped by the val split, as in the paper.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch

from ...errors import InputError
from ..inference import Cacophony
from .aqa_layouts import SPLITS, Question, Questions
from .datasets.corpus import file_clip
from .embedding import embed_clips, embed_texts
from .mlp_probe import Examples, ProbeConfig, fit_probe
from .store import Store

Kind = Literal["binary", "word"]
KINDS: tuple[Kind, ...] = ("binary", "word")
PROBE = ProbeConfig(hidden_layers=3)
"""Three hidden layers and the one to the answers."""

_TOPS = (1, 5, 10)
_OUTSIDE = -1


def evaluate_aqa(
    model: Cacophony,
    questions: Questions,
    *,
    probe: ProbeConfig = PROBE,
    store: Store | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Return accuracy and recall of both kinds of question, and what they stand on, as JSON takes it.

    An answer of val or test that train does not have can only be missed; how many there are is under ``unknown``.
    ``commonest`` is the accuracy of always giving train's commonest answer. A kind without questions in one of the
    splits is None. ``store`` keeps embeddings and result. Raises InputError where a clip cannot be decoded or the model
    has no tokenizer.
    """
    store = store or Store()
    paths = sorted({question.audio for split in SPLITS for question in questions.splits[split]})
    clips = [file_clip(path.name, path) for path in paths]
    made_from = [repr(questions), repr(probe), str(model.max_patches), *(clip.identity for clip in clips)]

    def compute() -> dict[str, Any]:
        texts = sorted({question.text for split in SPLITS for question in questions.splits[split]})
        audio = embed_clips(model, clips, store, progress=progress)
        rows = embed_texts(model, texts, store)
        features = _Features(dict(zip(paths, audio, strict=True)), dict(zip(texts, rows, strict=True)))
        return _answer(model, questions, features, probe)

    return store.record("aqa", made_from, compute)


def format_aqa(result: dict[str, Any]) -> str:
    """Lay a result out as plain text."""
    missing = sum(map(len, result["missing"].values()))
    lines = [f"{result['dataset']}: {result['clips']} clips found, {missing} missing"]
    for kind in KINDS:
        scores = result[kind]
        if scores is None:
            lines.append(f"  {kind}: not in all of train, val and test")
            continue
        figures = "  ".join(f"{name} {100 * scores[name]:.1f}" for name in ("accuracy", *_names(scores)))
        lines.append(
            f"  {kind}: {figures}  ({scores['questions']} questions, {scores['answers']} answers, {scores['unknown']} "
            f"unknown to train; the commonest answer has {100 * scores['commonest']:.1f})"
        )
    return "\n".join(lines)


def _answer(model: Cacophony, questions: Questions, features: "_Features", probe: ProbeConfig) -> dict[str, Any]:
    result: dict[str, Any] = {
        "dataset": questions.dataset,
        "clips": len(features.audio),
        "missing": {split: list(names) for split, names in questions.missing.items()},
        "probe": asdict(probe),
    }
    for kind in KINDS:
        asked = {s: [q for q in questions.splits[s] if q.is_binary == (kind == "binary")] for s in SPLITS}
        enough = len(asked["train"]) > 1 and asked["val"] and asked["test"]
        result[kind] = _evaluate(asked, features, probe, model.device) if enough else None
    if result["binary"] is None and result["word"] is None:
        raise InputError(f"{questions.dataset}: no kind of question is in train, val and test; check the splits")
    return result


class _Features:
    """Embeddings of clips and questions by what they are of."""

    def __init__(self, audio: dict[Any, np.ndarray], text: dict[str, np.ndarray]) -> None:
        self.audio, self.text = audio, text

    def of(self, asked: Sequence[Question]) -> torch.Tensor:
        """Return ``[N, 2 P]``: clip, then question."""
        rows = [np.concatenate([self.audio[question.audio], self.text[question.text]]) for question in asked]
        return torch.from_numpy(np.stack(rows))


def _evaluate(
    asked: dict[Any, list[Question]], features: _Features, probe: ProbeConfig, device: torch.device
) -> dict[str, Any]:
    counted = Counter(question.answer for question in asked["train"])
    answers = sorted(counted)
    number = {answer: index for index, answer in enumerate(answers)}
    targets = {s: np.array([number.get(q.answer, _OUTSIDE) for q in asked[s]]) for s in SPLITS}
    fitted = fit_probe(
        Examples(features.of(asked["train"]), torch.from_numpy(targets["train"])),
        Examples(features.of(asked["val"]), torch.from_numpy(targets["val"])),
        len(answers),
        lambda logits: _recall(logits.numpy(), targets["val"], 1),
        probe,
        device,
    )
    logits = fitted.logits(features.of(asked["test"])).numpy()
    commonest = max(answers, key=lambda answer: (counted[answer], answer))
    scores = {f"r@{top}": _recall(logits, targets["test"], top) for top in _TOPS if top < len(answers)}
    return {
        "accuracy": _recall(logits, targets["test"], 1),
        **scores,
        "commonest": float(np.mean([question.answer == commonest for question in asked["test"]])),
        "questions": len(asked["test"]),
        "answers": len(answers),
        "unknown": int(np.sum(targets["test"] == _OUTSIDE)),
        "epoch": fitted.epoch,
        "validation_accuracy": fitted.validation_score,
    }


def _recall(logits: np.ndarray, targets: np.ndarray, top: int) -> float:
    """Share of targets among the ``top`` largest logits; ties count against the target, as does one that has none."""
    known = targets != _OUTSIDE
    own = logits[np.flatnonzero(known), targets[known]]
    ranks = (logits[known] >= own[:, None]).sum(axis=1)
    return float(np.sum(ranks <= top) / len(targets))


def _names(scores: dict[str, Any]) -> list[str]:
    return [name for name in scores if name.startswith("r@")]
