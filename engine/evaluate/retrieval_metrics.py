"""Text-to-audio and audio-to-text retrieval: R@1, 5, 10 and mAP@10, each with its interval and beside chance.

Every figure can be reached by luck, the more so the smaller the gallery, so chance is always reported with it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .bootstrap import Interval, named_intervals

Scores = dict[str, float]
"""`r@1`, `r@5`, `r@10` and `map@10`, each in [0, 1]."""

_TOP = 10
_RECALLS = (1, 5, 10)
_NAMES = [*(f"r@{k}" for k in _RECALLS), f"map@{_TOP}"]
_SIMILARITIES_PER_BLOCK = 1 << 24
_NORM_TOLERANCE = 1e-2


class Chance(TypedDict):
    """Expected scores of a ranking drawn at random."""

    text_to_audio: Scores
    audio_to_text: Scores


class Intervals(TypedDict):
    """95 % bootstrap intervals over clips, lower and upper end of each score."""

    text_to_audio: dict[str, Interval]
    audio_to_text: dict[str, Interval]


class RetrievalMetrics(TypedDict):
    """Scores of both directions, with the number of clips and captions they stand on."""

    text_to_audio: Scores
    audio_to_text: Scores
    clips: int
    captions: int
    intervals: Intervals
    chance: Chance


def retrieval_metrics(
    audio_embeddings: NDArray[np.floating],
    text_embeddings: NDArray[np.floating],
    captions: Sequence[str],
    clip_of_caption: NDArray[np.integer],
) -> RetrievalMetrics:
    """Score the retrieval of clips by captions and of captions by clips.

    Candidates are ranked by descending cosine. Text to audio, a hit is a clip that carries the query's text; audio to
    text, a hit is a caption whose text is among the clip's, where only the best ranked of equal texts counts and the
    others still take up their ranks. (The authors' code does the same, but of several clips with the query's text it
    knows only the last in the order of its directory.) R@k is the share of queries with a hit in the top k. AP@10 is
    the mean, over the hits in the top 10, of (hits so far / rank), 0 without hits; map@10 is its mean over the queries.

    Ties count against the model: among equal similarities the candidates that are no hit come first, then the others
    by index. When all embeddings are equal the scores are therefore at or below chance, never above.

    Chance is the exact expectation of each figure under a uniformly random ranking of the same gallery.

    Args:
        audio_embeddings: float `[N, D]`, rows of unit norm.
        text_embeddings: float `[M, D]`, rows of unit norm.
        captions: the M texts; equal texts may stand on several clips.
        clip_of_caption: int `[M]`, the row in `audio_embeddings` of each caption's clip; every clip has at least one.

    Raises:
        InputError: shapes do not fit, an embedding is not finite or not of unit norm, a clip has no caption, or there
            is none.
    """
    _check(audio_embeddings, text_embeddings, captions, clip_of_caption)
    clips = len(audio_embeddings)
    numbers: dict[str, int] = {}
    text_of_caption = np.array([numbers.setdefault(caption, len(numbers)) for caption in captions])
    pairs = np.unique(np.stack([clip_of_caption, text_of_caption], axis=1), axis=0)
    texts_of_clip = _groups(pairs[:, 0], pairs[:, 1], clips)
    clips_of_text = _groups(pairs[:, 1], pairs[:, 0], len(numbers))
    captions_of_text = _groups(text_of_caption, np.arange(len(captions)), len(numbers))

    # A hit's group is what counts once: each clip by itself, but all captions of one text together.
    clip_hits = [clips_of_text[text] for text in text_of_caption]
    caption_hits = [np.concatenate([captions_of_text[text] for text in texts]) for texts in texts_of_clip]
    of_captions = _query_scores(text_embeddings, audio_embeddings, clip_hits, np.arange(clips))
    of_clips = _query_scores(audio_embeddings, text_embeddings, caption_hits, text_of_caption)
    return RetrievalMetrics(
        text_to_audio=_means(of_captions),
        audio_to_text=_means(of_clips),
        clips=clips,
        captions=len(captions),
        intervals=Intervals(
            text_to_audio=named_intervals(_NAMES, of_captions, clip_of_caption),
            audio_to_text=named_intervals(_NAMES, of_clips, np.arange(clips)),
        ),
        chance=Chance(
            text_to_audio=_chance([[1] * len(hits) for hits in clip_hits], clips),
            audio_to_text=_chance(
                [[len(captions_of_text[text]) for text in texts] for texts in texts_of_clip], len(captions)
            ),
        ),
    )


def format_table(metrics: RetrievalMetrics) -> str:
    """Lay the metrics out as plain text: each direction's figures in percent, chance in brackets, intervals below."""
    lines = [f"{metrics['clips']} clips, {metrics['captions']} captions; percent (chance)"]
    lines.append(_line("", _NAMES))
    for title, scores, chance, intervals in (
        ("text to audio", metrics["text_to_audio"], metrics["chance"]["text_to_audio"], "text_to_audio"),
        ("audio to text", metrics["audio_to_text"], metrics["chance"]["audio_to_text"], "audio_to_text"),
    ):
        ends = metrics["intervals"][intervals]
        lines.append(_line(title, [f"{100 * scores[name]:.1f} ({100 * chance[name]:.1f})" for name in _NAMES]))
        lines.append(_line("  95 % interval", [f"{100 * ends[n][0]:.1f} to {100 * ends[n][1]:.1f}" for n in _NAMES]))
    return "\n".join(lines)


def _line(title: str, cells: Sequence[str]) -> str:
    return f"{title:<15}" + "".join(f"{cell:>16}" for cell in cells)


def _check(
    audio: NDArray[np.floating], text: NDArray[np.floating], captions: Sequence[str], clip_of_caption: NDArray
) -> None:
    """Raise InputError unless the arguments of `retrieval_metrics` are as it says."""
    if audio.ndim != 2 or text.ndim != 2 or audio.shape[1] != text.shape[1]:
        raise InputError(f"embeddings have shapes {audio.shape} and {text.shape}; expected [N, D] and [M, D]")
    if not len(audio) or not len(captions):
        raise InputError(f"retrieval over {len(audio)} clips and {len(captions)} captions; give at least one of each")
    if len(captions) != len(text) or clip_of_caption.shape != (len(text),):
        raise InputError(
            f"{len(text)} text embeddings, {len(captions)} captions and clip_of_caption of shape "
            f"{clip_of_caption.shape}; expected one of each per caption"
        )
    for name, embeddings in (("audio", audio), ("text", text)):
        if not np.isfinite(embeddings).all():
            row = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
            raise InputError(f"{name} embedding {row} is not finite; the model that made it cannot be evaluated")
        norms = np.linalg.norm(embeddings, axis=1)
        if np.abs(norms - 1).max() > _NORM_TOLERANCE:
            raise InputError(f"{name} embeddings have norms {norms.min():.3g} to {norms.max():.3g}; expected 1")
    if not np.issubdtype(clip_of_caption.dtype, np.integer) or not np.array_equal(
        np.unique(clip_of_caption), np.arange(len(audio))
    ):
        raise InputError(f"clip_of_caption must name each clip from 0 to {len(audio) - 1} at least once, and no other")


def _groups(keys: NDArray[np.integer], values: NDArray[np.integer], count: int) -> list[NDArray[np.integer]]:
    """The values of each key 0 … count − 1, in their order."""
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.searchsorted(keys[order], np.arange(1, count)))


def _query_scores(
    queries: NDArray[np.floating],
    gallery: NDArray[np.floating],
    hits: Sequence[NDArray[np.integer]],
    group: NDArray[np.integer],
) -> NDArray[np.float64]:
    """Scores `[Q, 4]` of queries `[Q, D]` against a gallery `[L, D]`; `group` `[L]` is what counts once."""
    found = np.zeros((len(queries), _TOP), bool)
    for query, similarity in enumerate(_similarities(queries, gallery)):
        ranks = _hit_ranks(similarity, hits[query], group)
        found[query, ranks - 1] = True
    so_far = np.cumsum(found, axis=1)
    precision = np.where(found, so_far / np.arange(1, _TOP + 1), 0).sum(axis=1) / np.maximum(so_far[:, -1], 1)
    return np.stack([*(so_far[:, k - 1] > 0 for k in _RECALLS), precision], axis=1).astype(np.float64)


def _means(scores: NDArray[np.float64]) -> Scores:
    return {name: float(np.mean(column)) for name, column in zip(_NAMES, scores.T, strict=True)}


def _similarities(queries: NDArray[np.floating], gallery: NDArray[np.floating]) -> Iterator[NDArray[np.float64]]:
    """The cosines `[L]` of one query after the other, computed in blocks of queries."""
    transposed = gallery.astype(np.float64).T
    size = max(1, _SIMILARITIES_PER_BLOCK // len(gallery))
    for start in range(0, len(queries), size):
        # Rounded so that equal embeddings tie, in whatever order the matrix product adds up their columns.
        yield from np.round(queries[start : start + size].astype(np.float64) @ transposed, 12)


def _hit_ranks(
    similarity: NDArray[np.float64], hits: NDArray[np.integer], group: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Ranks from 1 to 10 at which a query's hits stand, ascending; of a group only the first counts."""
    order = np.lexsort((hits, -similarity[hits]))[:_TOP]
    best = hits[order]
    # No hit outside `best` can be among the first 10, so it is enough to count what stands before each of these.
    others = np.count_nonzero(similarity >= similarity[best, None], axis=1)
    others -= np.count_nonzero(similarity[hits] >= similarity[best, None], axis=1)
    ranks = others + np.arange(1, len(best) + 1)
    first = np.unique(group[best], return_index=True)[1]
    ranks = np.sort(ranks[first])
    return ranks[ranks <= _TOP]


def _chance(copies_of_queries: Sequence[Sequence[int]], gallery: int) -> Scores:
    """Average the expected scores over queries, given how many copies of each of its hits the gallery holds."""
    queries = Counter(tuple(sorted(copies)) for copies in copies_of_queries)
    total = {f"r@{k}": 0.0 for k in _RECALLS} | {f"map@{_TOP}": 0.0}
    for copies, count in queries.items():
        for name, value in _expected_scores(copies, gallery).items():
            total[name] += count * value / len(copies_of_queries)
    return total


def _expected_scores(copies: tuple[int, ...], gallery: int) -> Scores:
    """Expected scores of one query under a random ranking of the gallery, by recursion over the ranks.

    A state is the hits not yet found, as sorted numbers of copies. None of their copies has been drawn before rank r,
    so each is next with probability copies / (gallery − r + 1), whatever was drawn. A state carries its probability
    and, times that, the expected sum of (hits so far / rank).
    """
    states = {copies: (1.0, 0.0)}
    missed = [1.0]
    for rank in range(1, min(_TOP, gallery) + 1):
        following: dict[tuple[int, ...], tuple[float, float]] = {}
        for left, (probability, precision) in states.items():
            hits_so_far = len(copies) - len(left) + 1
            stay = 1.0
            for kind, times in Counter(left).items():
                step = kind * times / (gallery - rank + 1)
                stay -= step
                at = left.index(kind)
                gained = (step * probability, step * (precision + probability * hits_so_far / rank))
                _add(following, left[:at] + left[at + 1 :], gained)
            _add(following, left, (stay * probability, stay * precision))
        states = following
        missed.append(states[copies][0])
    recalls = {f"r@{k}": 1 - missed[min(k, gallery)] for k in _RECALLS}
    averages = (precision / max(len(copies) - len(left), 1) for left, (_, precision) in states.items())
    return {**recalls, f"map@{_TOP}": sum(averages)}


def _add(states: dict[tuple[int, ...], tuple[float, float]], key: tuple[int, ...], gain: tuple[float, float]) -> None:
    probability, precision = states.get(key, (0.0, 0.0))
    states[key] = (probability + gain[0], precision + gain[1])
