"""The prompt that ships, prompts of users, and what is taken for a caption."""

import json
from pathlib import Path

import pytest
from cacophony.data.curate.prompt import EXAMPLES_FILE, OUTCOMES, PROMPT_FILE, read_answer, read_prompt
from cacophony.data.curate.residue import residue
from cacophony.errors import InputError
from hypothesis import example, given
from hypothesis import strategies as st

from .noisy import TABLE

WORDS = ("a", "dog", "barks", "rain", "falls", "on", "tin", "while", "bells", "ring")


@given(
    st.text(max_size=60) | st.sampled_from(["", "Caption: ", '"', "A dog barks", "\n", "NONE", "{}"]).flatmap(st.just)
)
@example('"Caption: a dog barks"')
@example("Caption: ''")
def test_a_caption_is_one_line_of_the_answer_and_stays_one(answer: str) -> None:
    outcome, caption = read_answer(answer)

    assert outcome in OUTCOMES
    assert (outcome == "caption") == bool(caption)
    if caption:
        assert caption in answer
        assert caption == caption.strip()
        assert len(caption.splitlines()) == 1
        assert caption.isprintable()
        assert read_answer(caption) == ("caption", caption)


@given(st.lists(st.sampled_from(WORDS), min_size=2, max_size=20))
def test_any_plain_sentence_is_a_caption(words: list[str]) -> None:
    sentence = " ".join(words).capitalize() + "."

    for answer in (sentence, f"  {sentence}\n", f'"{sentence}"', f"Caption: {sentence}", f"caption: “{sentence}”"):
        assert read_answer(answer) == ("caption", sentence)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ('""', "empty"),
        ("Caption:", "empty"),
        ("NONE", "none"),
        ("None.", "none"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("I cannot describe a recording that I have not heard.", "refused"),
        ("As an AI language model, I do not listen.", "refused"),
        ("A dog barks.\n\nI left out the recorder.", "junk"),
        ("- A dog barks", "junk"),
        ("1. A dog barks", "junk"),
        ('{"caption": "A dog barks"}', "junk"),
        ("```A dog barks```", "junk"),
        ("**A dog barks**", "junk"),
        ("<b>A dog</b> barks", "junk"),
        ("Barking", "junk"),
        ("A dog " + "barks " * 60, "junk"),
        ("A dog\x00barks loudly", "junk"),
        ("12 34 56 78", "junk"),
        ("Caption: Caption: a dog barks", "junk"),
    ],
)
def test_other_answers_are_told_apart(answer: str, outcome: str) -> None:
    assert read_answer(answer) == (outcome, "")


def test_the_default_prompt_shows_ten_pairs_that_its_own_filters_pass() -> None:
    prompt = read_prompt()
    messages = prompt.messages("A cat. {examples} %s")

    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 10, "user"]
    assert messages[0]["content"] == PROMPT_FILE.read_text(encoding="utf-8").strip()
    assert messages[-1]["content"] == "A cat. {examples} %s"
    captions = [pair.caption for pair in prompt.examples if pair.caption != "NONE"]
    assert [residue(caption) for caption in captions] == [[]] * 9
    assert all(residue(pair.description) for pair in prompt.examples[:7])


def test_the_table_s_descriptions_are_flagged_and_their_captions_are_not() -> None:
    expected = [
        {"device", "name", "recording"},  # Lake Merritt, Oakland, Zoom H4n, 48kHz/24bit
        {"language"},
        {"name", "e-mail"},
        {"file-name", "device", "date", "recording"},
    ]

    assert [set(residue(text)) for text in TABLE] == expected
    for caption in TABLE.values():
        assert read_answer(f"Caption: {caption}") == ("caption", caption)
        assert residue(caption) == []


def test_a_prompt_of_the_user_replaces_ours(tmp_path: Path) -> None:
    instruction, examples = tmp_path / "prompt.txt", tmp_path / "examples.json"
    instruction.write_text("Say what sounds.\n")
    pairs = [{"description": f"dog {number}", "caption": "A dog barks."} for number in range(10)]
    examples.write_text(json.dumps({"example": pairs}))

    prompt = read_prompt(instruction, examples)

    assert prompt.messages("x")[0]["content"] == "Say what sounds."
    assert prompt.examples[3].description == "dog 3"
    assert prompt.digest != read_prompt().digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("[[example]]", "", 1), "cannot be read as TOML|9 examples"),
        (lambda text: text + '\n[[example]]\ndescription = "x"\ncaption = "A dog barks."\n', "11 examples"),
        (lambda text: text.replace("caption = ", "title = ", 1), "example 1 lacks"),
        (lambda text: text.replace('"NONE"', '"- Nothing at all"', 1), "example 5"),
        (lambda text: "[" * 2_000, "cannot be read as TOML"),
        (lambda text: "example = 3", "no list called example"),
        (lambda text: "#" * (1 << 21), "expected a short text"),
    ],
)
def test_examples_that_are_wrong_are_named(tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "examples.toml"
    path.write_text(change(EXAMPLES_FILE.read_text(encoding="utf-8")), encoding="utf-8")  # pyright: ignore[reportCallIssue]

    with pytest.raises(InputError, match=message):
        read_prompt(None, path)
