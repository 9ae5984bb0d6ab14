"""The command `curate label`."""

import sys
from pathlib import Path

import tyro

from ...errors import InputError
from .endpoint import Endpoint
from .label import Estimate, Labelling, api_key_from, example_conversation, label
from .manifest import read_manifest
from .pairs import PAIRS_NAME
from .prompt import OUTCOMES, read_prompt


def label_command(
    manifest: tyro.conf.Positional[Path],
    /,
    *,
    out: Path,
    base_url: str,
    model: str,
    key_variable: str = "OPENAI_API_KEY",
    prompt: Path | None = None,
    examples: Path | None = None,
    sample: int = 7_000,
    seed: int = 0,
    concurrency: int = 16,
    retries: int = 6,
    timeout_seconds: float = 60.0,
    temperature: float = 0.0,
    max_tokens: int = 128,
    price_in: float | None = None,
    price_out: float | None = None,
    answers: Path | None = None,
    dry_run: bool = False,
    yes: bool = False,
) -> int:
    """Ask a language model for captions of a random sample of the noisy descriptions.

    Interrupted or killed, the same command continues; what was answered is not asked again.

    Args:
        manifest: Manifest of `cacophony curate ingest`.
        out: Directory for pairs.jsonl, label.json and the answers.
        base_url: Any OpenAI-compatible endpoint, such as https://api.openai.com/v1 or http://localhost:8000/v1.
        model: Name of the model there.
        key_variable: Environment variable that holds the key; the key is never written anywhere.
        prompt: File with the instruction, instead of the package's data/curate/prompt.txt.
        examples: TOML or JSON file with ten examples, instead of the package's data/curate/examples.toml.
        sample: Descriptions to ask about.
        seed: Of the sample.
        concurrency: Requests at the same time.
        retries: Further tries of a request that fails, later each time.
        timeout_seconds: Silence after which a request is tried again.
        temperature: Of the answers; 0 is the likeliest.
        max_tokens: Longest answer.
        price_in: Price of a million tokens of requests, for the estimate.
        price_out: Price of a million tokens of answers, for the estimate.
        answers: File that keeps the answers, OUT/answers.jsonl by default; may be shared by several calls, in turn.
        dry_run: Print the estimate and the first conversation; ask nothing.
        yes: Ask the endpoint without asking here first.
    """
    endpoint = Endpoint(
        base_url=base_url,
        model=model,
        temperature=temperature,
        max_tokens=max_tokens,
        concurrency=concurrency,
        retries=retries,
        timeout_seconds=timeout_seconds,
    )
    work = Labelling(
        read_manifest(manifest),
        out,
        read_prompt(prompt, examples),
        endpoint,
        size=sample,
        seed=seed,
        price_in=price_in,
        price_out=price_out,
        answers=answers,
    )

    def go_on(estimate: Estimate) -> bool:
        print(estimate)
        if dry_run:
            for message in example_conversation(work):
                print(f"--- {message['role']}\n{message['content']}")
            return False
        if yes or not estimate.requests:
            return True
        if not sys.stdin.isatty():
            raise InputError("nobody is there to agree to the cost; give --yes, or --dry-run to see it only")
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")

    if dry_run:
        if label(work, "", go_on=go_on) is not None:
            print(f"{out}: is finished; nothing would be asked")
        return 0
    content = label(work, api_key_from(key_variable), go_on=go_on)
    if content is not None:
        counts = content["counts"]
        outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts.get(outcome))
        print(f"{outcomes}; {content['tokens_in']} tokens in, {content['tokens_out']} out; {out / PAIRS_NAME}")
    return 0
