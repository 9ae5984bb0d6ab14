"""Captions for a sample of noisy descriptions, from a language model behind an endpoint: what the cleaner learns from.

The result is a directory with pairs.jsonl (see `pairs`) and label.json (settings, counts, tokens). Answers are kept in
a file of their own as they come (see `answers`), so that the same command continues after a kill and pays for nothing
twice.
"""

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, RunError
from ...json_file import read_json, write_json
from ..progress import progress_bar
from .answers import Answer, Answers
from .endpoint import Endpoint, Request, Unanswered, ask
from .manifest import Manifest
from .noisy_text import digest_of
from .pairs import PAIRS_NAME, Pair, write_pairs
from .prompt import Outcome, Prompt, read_answer
from .residue import residue
from .sample import Sampled, sample_noisy

LABEL_NAME = "label.json"
ANSWERS_NAME = "answers.jsonl"
CHARACTERS_PER_TOKEN = 4.0
"""Of English, about, for the models of today; the estimate rests on it."""


@dataclass(frozen=True)
class Estimate:
    """What is about to be asked."""

    sampled: int
    """Descriptions in the sample."""
    requests: int
    """Of them without an answer so far, equal ones once."""
    tokens_in: int
    """Of all requests, estimated."""
    tokens_out: int
    """Of all answers, estimated."""
    cost: float | None
    """In the currency of the prices; None without prices."""

    def __str__(self) -> str:
        cost = "no price given" if self.cost is None else f"about {self.cost:.2f} at the given prices"
        return (
            f"{self.sampled} descriptions, {self.requests} requests, about {self.tokens_in} tokens in and "
            f"{self.tokens_out} out (estimated): {cost}"
        )


@dataclass(frozen=True)
class Labelling:
    """What to label, and how."""

    manifest: Manifest
    out: Path
    prompt: Prompt
    endpoint: Endpoint
    size: int = 7_000
    seed: int = 0
    price_in: float | None = None
    """Of a million tokens of requests."""
    price_out: float | None = None
    """Of a million tokens of answers."""
    answers: Path | None = None
    """`ANSWERS_NAME` in `out` by default."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"sample is {self.size}; expected 1 or more")
        if (self.price_in is None) != (self.price_out is None):
            raise InputError("one price of two is given; expected --price-in and --price-out, or neither")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the pairs."""
        return {
            "source": self.manifest.digest,
            "sample": self.size,
            "seed": self.seed,
            "prompt": self.prompt.digest,
            "endpoint": self.endpoint.base_url,
        } | self.endpoint.settings

    @property
    def answers_path(self) -> Path:
        """The file of answers."""
        return self.answers or self.out / ANSWERS_NAME


def label(
    work: Labelling, api_key: str, *, go_on: Callable[[Estimate], bool], progress: bool = True
) -> dict[str, Any] | None:
    """Label the sample; what label.json holds, or None where `go_on` declined, and then nothing was asked or written.

    Raises:
        InputError: The endpoint refuses the key, the model or the request; `out` is something else.
        RunError: Some requests got no answer. The others are kept, and the same call continues.
    """
    finished = _finished(work)
    if finished is not None:
        return finished
    sample, counts = sample_noisy(work.manifest, work.size, work.seed)
    if not sample:
        raise InputError(f"{work.manifest.folder}: no noisy clip with a text; nothing to label")
    keys = [_key(work, sampled.text) for sampled in sample]
    with Answers(work.answers_path) as answers:
        missing = {key: each.text for key, each in zip(keys, sample, strict=True) if key not in answers}
        if not go_on(_estimate(work, len(sample), list(missing.values()))):
            return None
        if missing:
            requests = (Request(key, work.prompt.messages(text)) for key, text in missing.items())
            unanswered = asyncio.run(_collect(work, api_key, requests, len(missing), answers, progress))
            if unanswered:
                raise RunError(
                    f"{sum(unanswered.values())} of {len(missing)} requests got no answer "
                    f"({unanswered.most_common(1)[0][0]}); the others are kept, the same command continues"
                )
        pairs = [_pair(sampled, answers[key]) for key, sampled in zip(keys, sample, strict=True)]
        used = [answers[key] for key in dict.fromkeys(keys)]
    counts.update(pair.outcome for pair in pairs)
    counts.update(f"flag {flag}" for pair in pairs for flag in pair.flags)
    content = {
        "settings": work.settings,
        "counts": {name: count for name, count in sorted(counts.items()) if count},
        "tokens_in": sum(answer.tokens_in for answer in used),
        "tokens_out": sum(answer.tokens_out for answer in used),
    }
    work.out.mkdir(parents=True, exist_ok=True)
    write_pairs(work.out / PAIRS_NAME, pairs)
    write_json(work.out / LABEL_NAME, content)
    return content


def api_key_from(variable: str) -> str:
    """The key in the environment; raises `InputError` where there is none."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(
            f"the environment variable {variable} is not set; set it to the endpoint's key (anything where it asks for "
            "none), or name another with --key-variable"
        )
    if not key.isprintable() or not key.isascii():
        raise InputError(f"the key in the environment variable {variable} has characters that no header can carry")
    return key


def _finished(work: Labelling) -> dict[str, Any] | None:
    path = work.out / LABEL_NAME
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("settings") != work.settings:
        raise InputError(
            f"{work.out}: the result of another call; give another directory, or remove {LABEL_NAME} to have "
            f"{PAIRS_NAME} written anew"
        )
    return content


async def _collect(
    work: Labelling, api_key: str, requests: Iterator[Request], total: int, answers: Answers, progress: bool
) -> Counter[str]:
    """Keep every answer as it comes; why the others were not given, with counts."""
    unanswered: Counter[str] = Counter()
    with progress_bar(progress, "texts") as bar:
        task = bar.add_task("label", total=total)
        async for request, result in ask(work.endpoint, api_key, requests):
            if isinstance(result, Unanswered):
                unanswered[result.why] += 1
            else:
                answers.add(request.key, result)
            bar.advance(task)
    return unanswered


def _key(work: Labelling, text: str) -> str:
    return digest_of(work.prompt.messages(text), work.endpoint.settings)


def _pair(sampled: Sampled, answer: Answer) -> Pair:
    outcome: Outcome
    outcome, caption = read_answer(answer.text)
    if answer.refused:
        outcome, caption = "refused", ""
    elif not answer.complete:
        outcome, caption = "junk", ""
    flags = residue(caption) if caption else ()
    return Pair(sampled.source, sampled.id, sampled.text, answer.text, outcome, caption, tuple(flags))


def _estimate(work: Labelling, sampled: int, texts: list[str]) -> Estimate:
    frame = sum(len(message["content"]) for message in work.prompt.messages(""))
    captions = [len(example.caption) for example in work.prompt.examples]
    tokens_in = round((frame * len(texts) + sum(map(len, texts))) / CHARACTERS_PER_TOKEN)
    tokens_out = round(len(texts) * sum(captions) / len(captions) / CHARACTERS_PER_TOKEN)
    cost = None
    if work.price_in is not None and work.price_out is not None:
        cost = (tokens_in * work.price_in + tokens_out * work.price_out) / 1e6
    return Estimate(sampled, len(texts), tokens_in, tokens_out, cost)


def example_conversation(work: Labelling) -> list[dict[str, str]]:
    """What is sent for the first description of the sample."""
    sample, _ = sample_noisy(work.manifest, 1, work.seed)
    return list(itertools.chain.from_iterable(work.prompt.messages(each.text) for each in sample))
