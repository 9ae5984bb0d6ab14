import itertools

import numpy as np
import pytest
from cacophony.engine.evaluate.retrieval_metrics import RetrievalMetrics, format_table, retrieval_metrics
from cacophony.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Problem = tuple[NDArray, NDArray, list[str], NDArray]


def unit(rows: NDArray) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def average_precision(ranking: list[int], groups: list[int], hits: set[int]) -> tuple[list[bool], float]:
    """Hit flags and AP@10 of one ranking of candidates, where only the first of a group is a hit."""
    seen: set[int] = set()
    flags, precisions = [], []
    for rank, candidate in enumerate(ranking[:10], start=1):
        hit = candidate in hits and groups[candidate] not in seen
        flags.append(hit)
        if hit:
            seen.add(groups[candidate])
            precisions.append(len(seen) / rank)
    return flags, float(np.mean(precisions)) if precisions else 0.0


def summary(results: list[tuple[list[bool], float]]) -> dict[str, float]:
    recalls = {f"r@{k}": float(np.mean([any(flags[:k]) for flags, _ in results])) for k in (1, 5, 10)}
    return {**recalls, "map@10": float(np.mean([precision for _, precision in results]))}


def hits_and_groups(captions: list[str], owner: NDArray, clips: int):
    """Per direction: the hits of each query, and the group of each candidate."""
    carried = [{captions[j] for j in range(len(captions)) if owner[j] == clip} for clip in range(clips)]
    clip_hits = [{clip for clip in range(clips) if caption in carried[clip]} for caption in captions]
    caption_hits = [{j for j, caption in enumerate(captions) if caption in texts} for texts in carried]
    return (clip_hits, list(range(clips))), (caption_hits, [captions.index(caption) for caption in captions])


def oracle(audio: NDArray, text: NDArray, captions: list[str], owner: NDArray) -> dict[str, dict[str, float]]:
    similarity = np.round(text.astype(np.float64) @ audio.astype(np.float64).T, 12)
    found = {}
    directions = zip(
        ("text_to_audio", "audio_to_text"),
        (similarity, similarity.T),
        hits_and_groups(captions, owner, len(audio)),
        strict=True,
    )
    for name, scores, (hits, groups) in directions:
        results = []
        for query, row in enumerate(scores):
            ranking = sorted(range(len(row)), key=lambda c, row=row, query=query: (-row[c], c in hits[query], c))
            results.append(average_precision(ranking, groups, hits[query]))
        found[name] = summary(results)
    return found


def assert_scores(metrics: RetrievalMetrics, expected: dict[str, dict[str, float]]):
    assert metrics["text_to_audio"] == pytest.approx(expected["text_to_audio"])
    assert metrics["audio_to_text"] == pytest.approx(expected["audio_to_text"])


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small galleries with shared texts and with so few distinct embeddings that ties abound."""
    clips = draw(st.integers(1, 14))
    owner = list(range(clips)) + draw(st.lists(st.integers(0, clips - 1), max_size=14))
    captions = [f"caption {draw(st.integers(0, 12))}" for _ in owner]
    values = st.tuples(st.integers(-1, 1), st.integers(-1, 1), st.integers(1, 2))
    audio = np.array([draw(values) for _ in range(clips)])
    text = np.array([draw(values) for _ in owner])
    return unit(audio), unit(text), captions, np.array(owner)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_scores_equal_the_slow_oracle(problem: Problem):
    assert_scores(retrieval_metrics(*problem), oracle(*problem))


def test_blocks_of_queries_give_the_same_scores(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    captions = [f"caption {i % 30}" for i in range(120)]
    problem = unit(rng.normal(size=(40, 8))), unit(rng.normal(size=(120, 8))), captions, np.arange(120) // 3
    whole = retrieval_metrics(*problem)
    assert_scores(whole, oracle(*problem))
    monkeypatch.setattr("cacophony.engine.evaluate.retrieval_metrics._SIMILARITIES_PER_BLOCK", 300)
    assert retrieval_metrics(*problem) == whole


def test_perfect_and_reversed_embeddings_with_five_captions_a_clip():
    audio = np.eye(50, dtype=np.float32)
    owner = np.repeat(np.arange(50), 5)
    captions = [f"caption {i}" for i in range(250)]
    metrics = retrieval_metrics(audio, audio[owner], captions, owner)
    perfect = {"r@1": 1.0, "r@5": 1.0, "r@10": 1.0, "map@10": 1.0}
    assert_scores(metrics, {"text_to_audio": perfect, "audio_to_text": perfect})
    assert (metrics["clips"], metrics["captions"]) == (50, 250)

    metrics = retrieval_metrics(audio, -audio[owner], captions, owner)
    none = dict.fromkeys(perfect, 0.0)
    assert_scores(metrics, {"text_to_audio": none, "audio_to_text": none})


@pytest.mark.parametrize("constant", ["audio", "text", "both"])
def test_collapsed_embeddings_never_beat_chance(constant: str):
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(60), 2)
    audio, text = unit(rng.normal(size=(60, 16))), unit(rng.normal(size=(120, 16)))
    if constant != "text":
        audio[:] = audio[0]
    if constant != "audio":
        text[:] = text[0]
    metrics = retrieval_metrics(audio, text, [f"caption {i}" for i in range(120)], owner)
    for direction in ("text_to_audio", "audio_to_text"):
        for name, chance in metrics["chance"][direction].items():
            assert metrics[direction][name] <= 1.05 * chance
    if constant == "both":
        assert set(metrics["text_to_audio"].values()) | set(metrics["audio_to_text"].values()) == {0.0}


def test_a_text_on_two_clips_hits_both_and_counts_once_among_captions():
    audio = np.eye(4, dtype=np.float32)
    text = unit(np.array([[1, 0, 0, 0], [0.9, 0.1, 0, 0], [0.8, 0.1, 0.3, 0], [0, 0, 0, 1.0]]))
    captions = ["rain", "rain", "a bell", "a dog"]
    metrics = retrieval_metrics(audio, text, captions, np.arange(4))
    assert_scores(metrics, oracle(audio, text, captions, np.arange(4)))
    # The first "rain" finds its own clip at once, the other one behind the two clips it ties with.
    assert metrics["text_to_audio"]["map@10"] == pytest.approx(np.mean([(1 + 2 / 4) / 2, 1, 1 / 2, 1]))
    # Clip 0 ranks both captions "rain" on top, the second of which is no hit; clip 1 ranks the bell above its own.
    assert metrics["audio_to_text"]["map@10"] == pytest.approx(np.mean([1, 1 / 2, 1, 1]))


@pytest.mark.parametrize("clips", [3, 8, 25])
def test_chance_is_the_mean_over_random_rankings(clips: int):
    rng = np.random.default_rng(0)
    owner = np.concatenate([np.arange(clips), rng.integers(clips, size=clips)])
    captions = [f"caption {number}" for number in rng.integers(2 * clips, size=2 * clips)]
    embeddings = unit(rng.normal(size=(2 * clips, 4)))
    chance = retrieval_metrics(embeddings[:clips], embeddings, captions, owner)["chance"]
    sides = hits_and_groups(captions, owner, clips)
    for expected, (hits, groups) in zip((chance["text_to_audio"], chance["audio_to_text"]), sides, strict=True):
        draws = range(6000 // len(hits))
        results = [
            average_precision([int(i) for i in rng.permutation(len(groups))], groups, hits[query])
            for query, _ in itertools.product(range(len(hits)), draws)
        ]
        assert summary(results) == pytest.approx(expected, abs=0.02)


def test_chance_is_exact_for_every_ranking_of_a_tiny_gallery():
    # Clip 0 carries "a" and "b"; "a" stands three times among the five captions.
    captions, owner = ["a", "b", "a", "a", "c"], np.array([0, 0, 1, 1, 2])
    embeddings = unit(np.random.default_rng(0).normal(size=(5, 4)))
    chance = retrieval_metrics(embeddings[:3], embeddings, captions, owner)["chance"]["audio_to_text"]
    hits, groups = hits_and_groups(captions, owner, 3)[1]
    rankings = [list(ranking) for ranking in itertools.permutations(range(5))]
    assert chance == pytest.approx(summary([average_precision(r, groups, hit) for hit in hits for r in rankings]))


def test_single_clip_scores_one_as_does_chance():
    row = np.ones((1, 1), np.float32)
    metrics = retrieval_metrics(row, row, ["a"], np.array([0]))
    assert (
        metrics["text_to_audio"] == metrics["chance"]["text_to_audio"] == dict.fromkeys(metrics["text_to_audio"], 1.0)
    )


def test_table_shows_each_figure_with_chance_beside_it():
    audio = np.eye(20, dtype=np.float32)
    table = format_table(retrieval_metrics(audio, audio, [str(i) for i in range(20)], np.arange(20)))
    lines = table.splitlines()
    assert lines[0].startswith("20 clips, 20 captions")
    assert lines[1].split() == ["r@1", "r@5", "r@10", "map@10"]
    assert lines[2].startswith("text to audio")
    assert "100.0 (5.0)" in lines[2]
    assert len({len(line) for line in lines[1:]}) == 1


def test_wrong_input_is_refused_with_a_reason():
    audio, owner, captions = np.eye(3, dtype=np.float32), np.arange(3), ["a", "b", "c"]
    poisoned = audio.copy()
    poisoned[1, 1] = np.nan
    cases = [
        ((audio, poisoned, captions, owner), "text embedding 1 is not finite"),
        ((poisoned, audio, captions, owner), "audio embedding 1 is not finite"),
        ((audio, audio[:, :2], captions, owner), "shapes"),
        ((audio, audio, captions[:2], owner), "2 captions"),
        ((audio, audio, captions, owner[:2]), "clip_of_caption of shape"),
        ((audio, audio, captions, np.array([0, 1, 3])), "clip_of_caption"),
        ((audio, audio, captions, np.array([0, 1, 1])), "clip_of_caption"),
        ((audio, audio, captions, np.array([0.0, 1.0, 2.0])), "clip_of_caption"),
        ((2 * audio, audio, captions, owner), "norms"),
        ((audio[:0], audio[:0], [], owner[:0]), "at least one"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            retrieval_metrics(*arguments)
