"""How good a cleaner's captions are beside wanted ones: ROUGE, length, what is left over."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ...extras import require
from .residue import residue

ROUGE = ("rouge1", "rouge2", "rougeL")


def score_captions(inputs: Sequence[str], wanted: Sequence[str], captions: Sequence[str]) -> dict[str, Any]:
    """Scores of `captions`, of texts `inputs`, beside those `wanted`; as many of each, at least one.

    Returns:
        ROUGE-1, -2 and -L as F1 in [0, 1], averaged over texts; `length_ratio`, words of all captions over words of all
        that were wanted; `copied`, the share that is its input, word for word; `residue`, for each flag the share of
        captions, of wanted captions and of inputs that have it.
    """
    scorer = require("rouge_score.rouge_scorer", "rouge-score", "scoring a cleaner", extra="curate").RougeScorer(ROUGE)
    rouge = [scorer.score(target, caption) for target, caption in zip(wanted, captions, strict=True)]
    words = [sum(len(text.split()) for text in texts) for texts in (captions, wanted)]
    scores: dict[str, Any] = {"texts": len(captions)}
    scores |= {name: fmean(each[name].fmeasure for each in rouge) for name in ROUGE}
    scores["length_ratio"] = words[0] / max(words[1], 1)
    scores["copied"] = fmean(text.split() == caption.split() for text, caption in zip(inputs, captions, strict=True))
    shares = {"captions": _shares(captions), "wanted": _shares(wanted), "inputs": _shares(inputs)}
    flags = sorted({flag for share in shares.values() for flag in share})
    scores["residue"] = {flag: {name: share.get(flag, 0.0) for name, share in shares.items()} for flag in flags}
    return scores


def _shares(texts: Sequence[str]) -> dict[str, float]:
    counts = Counter(flag for text in texts for flag in residue(text))
    return {flag: count / len(texts) for flag, count in counts.items()}
