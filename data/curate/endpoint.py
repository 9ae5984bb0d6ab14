"""An OpenAI-compatible endpoint: many chat requests at the same time, tried again where that helps."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ...errors import InputError, RunError
from ...extras import require
from .answers import Answer

FAILURES_IN_A_ROW = 20
"""Requests without an answer, each tried several times, after which the endpoint counts as gone."""
MAX_ANSWER_CHARACTERS = 20_000
"""Of an answer that is kept; a longer one counts as cut off."""
_LONGEST_RETRY_AFTER = 120.0  # seconds that openai's client waits at most when an endpoint asks for it


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a model answers, and how it is asked."""

    base_url: str
    """Ends with /v1, usually."""
    model: str
    temperature: float = 0.0
    max_tokens: int = 128
    """Of an answer."""
    concurrency: int = 16
    """Requests at the same time."""
    retries: int = 6
    """Of a request that got no answer: after 0.5 s, 1 s, 2 s … 8 s less up to a quarter, or when the endpoint says."""
    timeout_seconds: float = 60.0
    """Of silence, after which a request is tried again."""

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InputError(f"base-url is {self.base_url!r:.80}; expected http://… or https://…")
        if url.username or url.password or url.query:
            raise InputError("base-url holds a user, a password or a query; give the key in the environment variable")
        for name, least in (("max_tokens", 1), ("concurrency", 1), ("retries", 0), ("temperature", 0.0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name.replace('_', '-')} is {getattr(self, name)}; expected {least} or more")
        if not self.timeout_seconds > 0:
            raise InputError(f"timeout-seconds is {self.timeout_seconds}; expected more than 0")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides an answer besides the messages."""
        return {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}


@dataclass(frozen=True)
class Unanswered:
    """A request that got no answer, however often it was tried."""

    why: str


@dataclass(frozen=True)
class Request:
    """A conversation to continue, and the name of its answer."""

    key: str
    messages: list[dict[str, str]]


async def ask(
    endpoint: Endpoint, api_key: str, requests: Iterable[Request]
) -> AsyncIterator[tuple[Request, Answer | Unanswered]]:
    """Each request with what became of it, as they are done.

    The first is sent alone, so that a wrong key or model costs one request.

    Raises:
        InputError: The key is refused, the model or the endpoint does not exist, or the first request is refused.
        RunError: `FAILURES_IN_A_ROW` requests in a row got no answer.
    """
    openai = require("openai", "openai", "asking an endpoint", extra="curate")
    # Where the tries together take longer than this, bytes trickle in, which no time-out of silence ends.
    deadline = (endpoint.retries + 1) * endpoint.timeout_seconds + endpoint.retries * _LONGEST_RETRY_AFTER
    client = openai.AsyncOpenAI(
        api_key=api_key,
        base_url=endpoint.base_url,
        max_retries=endpoint.retries,
        timeout=endpoint.timeout_seconds,
    )

    async def one(request: Request, first: bool) -> tuple[Request, Answer | Unanswered]:
        try:
            async with asyncio.timeout(deadline):
                reply = await client.chat.completions.create(messages=request.messages, **endpoint.settings)
            return request, _answer(reply)
        except (openai.OpenAIError, TimeoutError, ValueError) as error:
            why = _one_line(error, api_key)
            if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
                raise InputError(f"{endpoint.base_url} refuses the key ({why}); set another") from None
            if isinstance(error, openai.NotFoundError):
                raise InputError(
                    f"{endpoint.base_url} has no model {endpoint.model!r:.80} ({why}); check --model and --base-url"
                ) from None
            of_this_text = getattr(error, "status_code", 0) in (400, 413, 422)
            if getattr(error, "code", None) == "content_filter" or (of_this_text and not first):
                return request, Answer(why, refused=True, complete=True, tokens_in=0, tokens_out=0)
            if first:
                raise InputError(f"{endpoint.base_url} did not answer the first request ({why})") from None
            return request, Unanswered(why)

    waiting, failures = iter(requests), 0
    async with client:
        async for request, result in _in_turn(one, waiting, endpoint.concurrency):
            failures = failures + 1 if isinstance(result, Unanswered) else 0
            if isinstance(result, Unanswered) and failures == FAILURES_IN_A_ROW:
                raise RunError(
                    f"{endpoint.base_url} left {failures} requests in a row without an answer (last: {result.why}); "
                    "the same command continues when it answers again"
                )
            yield request, result


async def _in_turn(one: Any, requests: Iterator[Request], concurrency: int) -> AsyncIterator[Any]:
    """`one(request, first)` of each request as they are done, no more than `concurrency` at a time."""
    first = next(requests, None)
    if first is None:
        return
    yield await one(first, True)
    running: set[asyncio.Task[Any]] = set()
    try:
        while True:
            while len(running) < concurrency and (request := next(requests, None)) is not None:
                running.add(asyncio.create_task(one(request, False)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            # All of them before any is raised: what was answered is paid.
            wrong = [task for task in done if task.exception()]
            for task in done - set(wrong):
                yield task.result()
            for task in wrong:
                task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _answer(reply: Any) -> Answer:
    choice = (getattr(reply, "choices", None) or [None])[0]
    if choice is None or getattr(choice, "message", None) is None:
        raise ValueError("a reply without a message")
    message, usage = choice.message, getattr(reply, "usage", None)
    content = getattr(message, "content", None)
    refusal = getattr(message, "refusal", None)
    text = content if isinstance(content, str) else refusal if isinstance(refusal, str) else ""
    return Answer(
        text=text[:MAX_ANSWER_CHARACTERS],
        refused=bool(refusal) or choice.finish_reason == "content_filter",
        complete=choice.finish_reason != "length" and len(text) <= MAX_ANSWER_CHARACTERS,
        tokens_in=_count(usage, "prompt_tokens"),
        tokens_out=_count(usage, "completion_tokens"),
    )


def _count(usage: Any, name: str) -> int:
    value = getattr(usage, name, 0)
    return value if isinstance(value, int) and value > 0 else 0


def _one_line(error: Exception, api_key: str) -> str:
    text = " ".join(str(error).replace(api_key, "…").split()) or "no answer in time"
    return text if len(text) <= 200 else text[:199] + "…"
