"""Captioning metrics against a second computation of each, written here from their definitions."""

import importlib.util
import math
import os
import subprocess
from collections import Counter
from random import Random

import pytest
from cacophony.engine.evaluate import caption_metrics as module
from cacophony.engine.evaluate.caption_metrics import caption_metrics, format_caption_metrics
from cacophony.errors import InputError

from .corpora import sentence

needs_package = pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="needs the extra evaluate")


def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(candidates: list[str], references: list[list[str]], order: int) -> float:
    """Papineni et al. over the corpus: clipped precisions, brevity by the closest reference."""
    logs = 0.0
    for n in range(1, order + 1):
        clipped = total = 0
        for candidate, texts in zip(candidates, references, strict=True):
            counts = grams(candidate, n)
            most = Counter[tuple[str, ...]]()
            for text in texts:
                most |= grams(text, n)
            clipped += sum((counts & most).values())
            total += sum(counts.values())
        logs += math.log(clipped / total) / order
    length = sum(len(candidate.split()) for candidate in candidates)
    closest = sum(
        min((abs(len(text.split()) - len(c.split())), len(text.split())) for text in texts)[1]
        for c, texts in zip(candidates, references, strict=True)
    )
    return math.exp(logs + min(0.0, 1 - closest / length))


def rouge_l(candidates: list[str], references: list[list[str]]) -> float:
    """F-measure, β 1.2, of the longest common subsequence; the best precision and the best recall of the references."""

    def common(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return 1 + common(a[:-1], b[:-1])
        return max(common(a[:-1], b), common(a, b[:-1]))

    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        lengths = [(common(candidate.split(), text.split()), len(text.split())) for text in texts]
        precision = max(length for length, _ in lengths) / len(candidate.split())
        recall = max(length / words for length, words in lengths)
        scores.append(2.44 * precision * recall / (recall + 1.44 * precision) if precision and recall else 0.0)
    return sum(scores) / len(scores)


def cider(candidates: list[str], references: list[list[str]]) -> float:
    """CIDEr-D: cosines of tf-idf vectors, clipped, with a Gaussian penalty (σ 6) on lengths; mean over n, times 10."""
    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        total = 0.0
        for text in texts:
            for n in range(1, 5):
                weight = {
                    gram: math.log(len(references))
                    - math.log(max(1, sum(any(grams(t, n)[gram] for t in group) for group in references)))
                    for gram in grams(candidate, n) | grams(text, n)
                }
                mine = {gram: count * weight[gram] for gram, count in grams(candidate, n).items()}
                theirs = {gram: count * weight[gram] for gram, count in grams(text, n).items()}
                product = sum(min(mine[gram], theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram in mine)
                norms = math.sqrt(sum(v * v for v in mine.values()) * sum(v * v for v in theirs.values()))
                # The reference implementation counts words by bigrams: one less on both sides.
                apart = max(0, len(candidate.split()) - 1) - max(0, len(text.split()) - 1)
                total += (product / norms if norms else 0.0) * math.exp(-(apart**2) / 72)
        scores.append(10 * total / 4 / len(texts))
    return sum(scores) / len(scores)


@pytest.fixture
def captions() -> tuple[list[str], list[list[str]]]:
    random = Random(5)
    references = [[sentence(random) for _ in range(3)] for _ in range(12)]
    candidates = [" ".join(random.choice(texts).split()[: random.randrange(2, 9)]) for texts in references]
    candidates[0] = references[1][0]
    return candidates, references


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "has_java", lambda: False)


@needs_package
@pytest.mark.usefixtures("no_java")
def test_scores_equal_a_second_computation(captions: tuple[list[str], list[list[str]]]):
    """Budget 1e-6: pycocoevalcap adds 1e-9 to its precisions."""
    scores = caption_metrics(*captions, "rules").scores
    for order in range(1, 5):
        assert scores[f"bleu_{order}"] == pytest.approx(bleu(*captions, order), abs=1e-6)
    assert scores["rouge_l"] == pytest.approx(rouge_l(*captions))
    assert scores["cider"] == pytest.approx(cider(*captions))


@needs_package
@pytest.mark.usefixtures("no_java")
def test_captions_that_are_a_reference_score_one_and_others_none():
    references = [["a dog barks in the rain", "rain falls"], ["the bell rings softly far away"], ["wind"]]
    exact = caption_metrics([texts[0] for texts in references], references, "rules").scores
    assert (exact["bleu_1"], exact["rouge_l"]) == (pytest.approx(1), pytest.approx(1))
    foreign = caption_metrics(["x y", "", "z"], references, "rules").scores
    assert foreign["rouge_l"] == foreign["cider"] == 0
    assert foreign["bleu_4"] == pytest.approx(0, abs=1e-3)


@needs_package
@pytest.mark.usefixtures("no_java")
def test_what_needs_java_is_named_where_there_is_none(captions: tuple[list[str], list[list[str]]]):
    metrics = caption_metrics(*captions)
    assert metrics.tokenization == "rules"
    assert set(metrics.not_computed) == {"meteor", "spice", "spider"}
    said = format_caption_metrics(metrics)
    assert "needs Java" in said
    assert "without Java" in said
    with pytest.raises(InputError, match="PTB tokenizer needs Java"):
        caption_metrics(*captions, "ptb")


@needs_package
@pytest.mark.skipif(not module.has_java(), reason="needs Java")
def test_meteor_is_computed_where_java_is(captions: tuple[list[str], list[list[str]]]):
    references = captions[1]
    metrics = caption_metrics(["", *(texts[0] for texts in references[1:])], references)
    assert metrics.tokenization == "ptb"
    assert 0.8 < metrics.scores["meteor"] < 1
    assert ("spice" in metrics.scores) == ("spider" in metrics.scores) != ("spice" in metrics.not_computed)


@pytest.fixture
def no_spice_models(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_SPICE_MODELS", ("lib/absent-1.jar", "lib/absent-1-models.jar"))


@needs_package
@pytest.mark.usefixtures("no_spice_models")
def test_models_that_spice_lacks_are_named_with_their_place(
    captions: tuple[list[str], list[list[str]]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "has_java", lambda: True)
    monkeypatch.setattr(module, "_meteor", lambda *_: 0.25)
    metrics = caption_metrics(*captions, "rules")
    assert metrics.scores["meteor"] == 0.25
    assert "spider" not in metrics.scores
    said = metrics.not_computed["spice"]
    for part in ("absent-1.jar and absent-1-models.jar in ", "pycocoevalcap/spice/lib", "get_stanford_models", ".zip"):
        assert part in said


@needs_package
def test_spider_is_the_mean_and_spice_may_look_into_javas_packages(
    captions: tuple[list[str], list[list[str]]], monkeypatch: pytest.MonkeyPatch
):
    """SPICE's models are no package: only what is around its Java program is tested."""
    seen: list[str] = []

    class Spice:
        def compute_score(self, truths: dict[int, list[str]], hypotheses: dict[int, list[str]]):
            seen.append(os.environ["JDK_JAVA_OPTIONS"])
            return 0.5, []

    monkeypatch.setattr(module, "has_java", lambda: True)
    monkeypatch.setattr(module, "_meteor", lambda *_: 0.25)
    monkeypatch.setattr(module, "_SPICE_MODELS", ())
    monkeypatch.setattr("pycocoevalcap.spice.spice.Spice", Spice)
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-Xss2m")
    metrics = caption_metrics(*captions, "rules")
    assert metrics.not_computed == {}
    assert metrics.scores["spider"] == (metrics.scores["cider"] + 0.5) / 2
    assert seen[0].startswith("-Xss2m --add-opens=java.base/java.lang=ALL-UNNAMED ")
    assert os.environ["JDK_JAVA_OPTIONS"] == "-Xss2m"


@needs_package
@pytest.mark.skipif(not module.has_java(), reason="needs Java")
def test_java_takes_the_options():
    with module._java_opened():
        found = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True)
    assert "version" in found.stderr
    assert "Unrecognized" not in found.stderr


@needs_package
def test_arguments_that_do_not_fit_are_refused():
    for candidates, references in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(InputError, match="expected one"):
            caption_metrics(candidates, references)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pycocoevalcap.*cacophony-engine\[evaluate\]"):
        caption_metrics(["a dog"], [["a dog"]])
