"""What a caption must not hold, found in it: flags, never a verdict.

    empty         nothing in it
    file-name     wind_03.wav, ZOOM0004, R09_0023
    url, e-mail   http://…, www.…, somebody@…
    device        recorders, microphones, programs (residue_words.py)
    recording     how it was made: recorded in, 24 bit, 48 kHz, mono, take 2
    date          dates, times of day, time stamps, years
    name          people and places left over
    language      words of another language than English (language.py)
    repeats       a word or phrase again and again
    instruction   parts of the prompt, or talk about the task

Names are words with a capital inside a sentence, which no list of what is capitalised anyway has. So a name at the
start of a sentence or in small letters is missed, an unknown title of a piece or brand counts as a name, and a text
that capitalises most words tells nothing.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from .language import has_foreign_words
from .prompt import PROMPT_FILE
from .residue_words import EXTENSIONS, MAKERS, MODELS, NOT_NAMES, TOP_LEVEL_DOMAINS

MAX_CHARACTERS = 10_000
"""Of a text that is looked at; a caption has about 60."""
_INSTRUCTION_WORDS = 6
"""As many in a row are the prompt's own."""


def _any(patterns: Iterable[str], flags: re.RegexFlag = re.IGNORECASE) -> re.Pattern[str]:
    return re.compile(r"(?<!\w)(?:" + "|".join(patterns) + r")(?!\w)", flags)


_FILE_NAME = _any((rf"[\w().-]{{1,80}}\.(?:{'|'.join(EXTENSIONS.split())})",))
_FILE_STEM = _any((r"\w{1,80}_\w{1,80}", r"[A-Z]{2,8}-?0\d{2,}(?:-\d+)*", r"[A-Z]{3,8}\d{4,}"), re.RegexFlag(0))
_URL = re.compile(
    rf"https?:/|\bwww\.|(?<![\w@.-])[\w-]{{2,63}}(?:\.[\w-]{{2,63}}){{0,4}}\.(?:{'|'.join(TOP_LEVEL_DOMAINS.split())})"
    r"(?![\w-]|\.\w)",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[\w.+-]{1,64}(?:@| ?[\[(]at[\])] ?)[\w-]{1,63}\.?\w", re.IGNORECASE)
_DEVICE = _any(MAKERS + MODELS)
_RECORDING = _any(
    (
        r"(?:re-?)?record(?:ed|ing)? (?:in|on|at|with|by|using|via|through|from|for|during|near|inside|outside)",
        r"(?:edited|mastered|normali[sz]ed) (?:in|on|at|with|by|to|using)",
        r"field[- ]recording",
        r"\d+(?:\.\d+)? ?k(?:hz|bps)",
        r"(?:16|24|32)[- ]?bits?",
        r"(?:8000|11025|16000|22050|32000|44100|48000|88200|96000|192000) ?hz",
        r"(?:mono|stereo) (?:file|recording|wav|mix)",
        r"take (?:no\.? ?|# ?)?\d+|\d+ takes",
        r"(?:built-?in|internal|contact|binaural|shotgun|condenser|cardioid) mic\w*",
        r"(?:cc0|cc[- ]by|creative commons|royalty[- ]free|copyright)",
        r"(?:feel free|please (?:rate|comment|credit)|my (?:pack|freesound))",
    )
)
_MONTHS = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|oct(?:ober)?|"
    "nov(?:ember)?|dec(?:ember)?"
)
_DATE = _any(
    (
        r"\d{1,4}[./-]\d{1,2}[./-]\d{2,4}",
        rf"(?:{_MONTHS})\.? \d{{1,4}}(?:st|nd|rd|th)?",
        rf"\d{{1,2}}(?:st|nd|rd|th)?(?: of)? (?:{_MONTHS})",
        r"(?:19|20)\d\d(?! ?(?:hz|bpm|rpm))",
        r"\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]\.?m)?",
        r"\d{1,2} ?(?:[ap]m|[ap]\.m\.|o['’]clock)",
    )
)
_ABOUT_TASK = re.compile(
    r"\b(?:caption|description|output|answer|title|tags?) ?:|\bas an ai\b|\b(?:here is|here's) (?:the|a|your) caption|"
    r"\bthe (?:description|caption|audio clip|recording) (?:says|does|mentions|describes)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?:;…]['\")\]]*(?:\s+|(?=[A-Z]))|[\n\r]+")


def residue(text: str) -> list[str]:
    """The flags of `text`, sorted; empty where nothing is wrong. Of a very long text the beginning is looked at."""
    text = text[:MAX_CHARACTERS]
    if not _WORD.search(text):
        return ["empty"]
    return sorted(flag for flag, holds in _CHECKS.items() if holds(text))


def _has_name(text: str) -> bool:
    # Capitals that have a flag of their own are no names.
    for known in (_DEVICE, _DATE, _FILE_NAME, _URL, _EMAIL):
        text = known.sub(" it ", text)
    inside = capitals = 0
    found = False
    for sentence in _SENTENCE_END.split(text):
        for word in _WORD.findall(sentence)[1:]:
            inside += 1
            if word[0].isupper():
                capitals += 1
                found |= _may_be_name(word)
    return found and not (inside > 2 and capitals > 0.6 * inside)


def _may_be_name(word: str) -> bool:
    if word in NOT_NAMES or word.removesuffix("'s").removesuffix("’s") in NOT_NAMES:
        return False
    # Of one letter: a note or a key. All capitals: an abbreviation, or shouting.
    return len(word) > 1 and not word.isupper() and not any(character.isdigit() for character in word)


def _has_repeats(text: str) -> bool:
    words = [word.lower() for word in _WORD.findall(text)]
    for size in range(1, 7):
        times = 4 if size == 1 else 3
        run = size
        for first in range(size, len(words)):
            run = run + 1 if words[first] == words[first - size] else size
            if run >= size * times:
                return True
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    return len(words) >= 12 and 2 * len(triples) < len(words) - 2


def _has_instruction(text: str) -> bool:
    if _ABOUT_TASK.search(text):
        return True
    words = [word.lower() for word in _WORD.findall(text)]
    return any(run in _prompt_runs() for run in _runs(words))


@cache
def _prompt_runs() -> frozenset[tuple[str, ...]]:
    return frozenset(_runs([word.lower() for word in _WORD.findall(PROMPT_FILE.read_text(encoding="utf-8"))]))


def _runs(words: list[str]) -> Any:
    return zip(*(words[first:] for first in range(_INSTRUCTION_WORDS)), strict=False)


_CHECKS: dict[str, Callable[[str], object]] = {
    "file-name": lambda text: _FILE_NAME.search(text) or _FILE_STEM.search(text),
    "url": _URL.search,
    "e-mail": _EMAIL.search,
    "device": _DEVICE.search,
    "recording": _RECORDING.search,
    "date": _DATE.search,
    "name": _has_name,
    "language": has_foreign_words,
    "repeats": _has_repeats,
    "instruction": _has_instruction,
}
FLAGS = (*_CHECKS, "empty")
