"""Labelling against an endpoint on this machine that fails, stalls, limits, refuses and answers with junk."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cacophony.__main__ import main
from cacophony.data.curate.answers import Answers
from cacophony.data.curate.endpoint import Endpoint
from cacophony.data.curate.label import Labelling, label
from cacophony.data.curate.manifest import Manifest, read_manifest
from cacophony.data.curate.noisy_text import MAX_CHARACTERS, cleaner_inputs
from cacophony.data.curate.pairs import Pair, read_pairs
from cacophony.data.curate.prompt import read_prompt
from cacophony.data.curate.sample import sample_noisy
from cacophony.errors import InputError, RunError

from .loopback import Loopback, caption_of, serve
from .noisy import TABLE, noisy_row, write_noisy

CLIPS = 30


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_noisy(tmp_path / "manifest", [noisy_row(number) for number in range(CLIPS)])


def labelling(manifest: Manifest, endpoint: Loopback, **changes: Any) -> Labelling:
    asked = {"concurrency": 8, "retries": 2, "timeout_seconds": 5.0} | changes.pop("asked", {})
    where = Endpoint(base_url=endpoint.url, model="tiny", **asked)
    work = Labelling(manifest, manifest.folder.with_name("pairs"), read_prompt(), where, size=20)
    return replace(work, **changes)


def run(work: Labelling, key: str = "a-key") -> list[Pair]:
    label(work, key, go_on=lambda estimate: True)
    return list(read_pairs(work.out / "pairs.jsonl"))


def test_each_description_is_asked_once_with_the_examples_and_its_answer_kept(manifest: Manifest) -> None:
    full = threading.Event()

    def until_eight_wait(text: str, tries: int) -> None:
        if len(endpoint.asked) > 1:  # the first is sent alone
            if endpoint.at_once == 8:
                full.set()
            full.wait(10)

    with serve(Loopback(trouble=until_eight_wait)) as endpoint:
        work = labelling(manifest, endpoint)
        pairs = run(work)
        again = run(work)

    texts = {row["id"]: cleaner_inputs(row)[0] for row in manifest}
    assert len(pairs) == 20
    assert all(pair.text == texts[pair.id] for pair in pairs)
    assert all(
        (pair.answer, pair.caption, pair.outcome) == (caption_of(pair.text),) * 2 + ("caption",) for pair in pairs
    )
    assert again == pairs
    assert endpoint.answered == Counter(pair.text for pair in pairs)
    assert [message["role"] for message in endpoint.bodies[0]["messages"]].count("assistant") == 10
    assert endpoint.most_at_once == 8
    counts = json.loads((work.out / "label.json").read_text())
    assert counts["counts"]["caption"] == 20
    assert (counts["tokens_in"], counts["tokens_out"]) == (2_000, 200)


def test_an_endpoint_that_fails_stalls_and_limits_gives_the_same_pairs(manifest: Manifest) -> None:
    never, kinds = threading.Event(), set[int]()

    def trouble(text: str, tries: int) -> Any:
        kind = sum(map(ord, text)) % 5
        kinds.add(kind)
        if tries > 0 or kind == 4:
            return None
        return (500, (429, {"retry-after": "0.05"}, {"error": {}}), never, (503, {"retry-after-ms": "20"}, b"<html>"))[
            kind
        ]

    with serve(Loopback()) as good:
        expected = run(labelling(manifest, good))
    with serve(Loopback(trouble=trouble)) as endpoint:
        quick = {"timeout_seconds": 0.5, "concurrency": 20}
        pairs = run(labelling(manifest, endpoint, out=manifest.folder.with_name("again"), asked=quick))
        never.set()

    assert pairs == expected
    assert kinds == set(range(5))
    assert max(endpoint.asked.values()) == 2
    assert set(endpoint.answered.values()) == {1}


def test_refusals_empty_answers_and_junk_are_kept_apart_and_counted(manifest: Manifest) -> None:
    answers: list[Any] = [
        "A dog barks.",
        "A bell rings in Hyde Park.",
        "NONE",
        "",
        None,
        "I'm sorry, I can't do that.",
        {"message": {"role": "assistant", "content": None, "refusal": "no"}},
        {"message": {"role": "assistant", "content": "A dog"}, "finish_reason": "content_filter"},
        {"message": {"role": "assistant", "content": "A dog barks and"}, "finish_reason": "length"},
        "Sure! Here it is:\n- A dog barks." + " It barks." * 100_000,
    ]
    outcomes = ["caption", "caption", "none", "empty", "empty", "refused", "refused", "refused", "junk", "junk"]

    def number(text: str) -> int:
        return int(text.split("take ")[1].split(".")[0])

    def trouble(text: str, tries: int) -> Any:
        flagged = {"error": {"message": "flagged", "code": "content_filter"}}
        return (400, {}, flagged) if number(text) == 10 else None

    with serve(Loopback(answer=lambda text: answers[number(text) % 10], trouble=trouble)) as endpoint:
        work = labelling(manifest, endpoint, size=CLIPS)
        pairs = run(work)

    by_id = {int(pair.id): pair for pair in pairs}
    assert sorted(by_id) == list(range(CLIPS))  # none lost
    assert by_id.pop(10).outcome == "refused"
    assert {i: pair.outcome for i, pair in by_id.items()} == {i: outcomes[i % 10] for i in by_id}
    assert by_id[1].flags == ("name",)
    counts = json.loads((work.out / "label.json").read_text())["counts"]
    assert {outcome: counts[outcome] for outcome in set(outcomes)} == Counter(p.outcome for p in pairs)


def test_a_reply_that_is_no_answer_is_asked_again_by_the_next_call(manifest: Manifest) -> None:
    bodies = [b"<html>", b'{"choices": []}', b"[1", b'{"choices": [{"message": null}]}']

    def trouble(text: str, tries: int) -> Any:
        number = int(text.split("take ")[1].split(".")[0])
        broken = tries == 0 and number in (3, 4, 5, 6) and len(endpoint.asked) > 1
        return (
            (200, {"Content-Type": "text/html" if number == 3 else "application/json"}, bodies[number - 3])
            if broken
            else None
        )

    with serve(Loopback(trouble=trouble)) as endpoint:
        work = labelling(manifest, endpoint, size=CLIPS)
        with pytest.raises(RunError, match="4 of 30 requests got no answer"):
            run(work)
        assert not (work.out / "pairs.jsonl").exists()
        pairs = run(work)

    assert len(pairs) == CLIPS
    assert set(endpoint.answered.values()) == {1}


def test_an_endpoint_that_goes_away_ends_the_run_and_keeps_what_it_answered(manifest: Manifest) -> None:
    with serve(Loopback(trouble=lambda text, tries: 500 if len(endpoint.answered) >= 5 and gone else None)) as endpoint:
        gone = [True]
        work = labelling(manifest, endpoint, size=CLIPS, asked={"retries": 0, "concurrency": 4})
        with pytest.raises(RunError, match="left 20 requests in a row without an answer"):
            run(work)
        paid = sum(endpoint.answered.values())
        gone.clear()
        pairs = run(work)

    assert 5 <= paid < 10
    assert len(pairs) == CLIPS
    assert set(endpoint.answered.values()) == {1}


def test_killed_in_the_midst_and_called_again_nothing_is_paid_twice(manifest: Manifest) -> None:
    with serve(Loopback()) as good:
        expected = run(labelling(manifest, good, out=manifest.folder.with_name("whole")))
    enough, never = 7, threading.Event()
    stop = lambda text, tries: never if len(endpoint.answered) >= enough and not never.is_set() else None  # noqa: E731
    with serve(Loopback(trouble=stop)) as endpoint:
        work = labelling(manifest, endpoint, asked={"concurrency": 3, "timeout_seconds": 60.0})
        code = (
            "import sys; from pathlib import Path\n"
            "from cacophony.data.curate.label_command import label_command\n"
            "options = dict(model='tiny', sample=20, concurrency=3, yes=True)\n"
            "label_command(Path(sys.argv[1]), out=Path(sys.argv[2]), base_url=sys.argv[3], **options)\n"
        )
        argv = [sys.executable, "-c", code, str(manifest.folder), str(work.out), endpoint.url]
        child = subprocess.Popen(argv, env=os.environ | {"OPENAI_API_KEY": "a-key"}, stdout=subprocess.DEVNULL)
        kept = work.out / "answers.jsonl"
        try:
            while (
                not kept.exists()
                or kept.read_bytes().count(b"\n") < sum(endpoint.answered.values())
                or endpoint.at_once < 3
            ):
                assert child.poll() is None
                time.sleep(0.02)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        paid = sum(endpoint.answered.values())
        assert not (work.out / "pairs.jsonl").exists()
        with kept.open("ab") as file:
            file.write(b'{"key": "half a li')  # a machine that lost power
        never.set()
        pairs = run(work)

    assert enough <= paid < 20
    assert pairs == expected
    assert set(endpoint.answered.values()) == {1}


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({}, "another-key", "refuses the key"),
        ({"model": "large"}, "a-key", "has no model 'large'"),
        ({"base_url": "http://127.0.0.1:9/v1", "retries": "0"}, "a-key", "did not answer the first request"),
        ({"base_url": "localhost:8000"}, "a-key", "expected http"),
        ({"base_url": "http://me:secret@host/v1"}, "a-key", "environment variable"),
        ({"key_variable": "NO_SUCH_KEY"}, "a-key", "NO_SUCH_KEY is not set"),
        ({"prompt": "missing.txt"}, "a-key", "cannot be read as text"),
        ({"price_in": "1"}, "a-key", "one price of two"),
        ({"yes": None}, "a-key", "give --yes"),
    ],
)
def test_a_call_that_cannot_work_is_refused_by_name_and_leaves_nothing(
    manifest: Manifest,
    change: dict[str, str | None],
    key: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    out = manifest.folder.with_name("pairs")
    with serve(Loopback()) as endpoint:
        flags = {"base_url": endpoint.url, "model": "tiny", "out": str(out), "yes": ""} | change
        words = [
            [f"--{name.replace('_', '-')}", *([value] if value else [])]
            for name, value in flags.items()
            if value is not None
        ]
        code = main(["curate", "label", str(manifest.folder), *itertools.chain.from_iterable(words)])

    error = capfd.readouterr().err
    assert code == 2
    assert message in error
    assert key not in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()
    assert sum(endpoint.asked.values()) <= 1


def test_a_dry_run_tells_the_cost_and_the_conversation_and_asks_nothing(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve(Loopback()) as endpoint:
        flags = ["--base-url", endpoint.url, "--model", "tiny", "--out", str(manifest.folder.with_name("pairs"))]
        flags += ["--price-in", "1000", "--price-out", "2000", "--sample", "10", "--dry-run"]
        assert main(["curate", "label", str(manifest.folder), *flags]) == 0

    printed = capsys.readouterr().out
    frame = sum(len(message["content"]) for message in read_prompt().messages(""))
    tokens = int(printed.split("about ")[1].split()[0])
    assert 10 * frame / 4 < tokens < 10 * (frame + 100) / 4
    out_tokens = int(printed.split(" in and ")[1].split()[0])
    assert f"about {(1000 * tokens + 2000 * out_tokens) / 1e6:.2f} at the given prices" in printed
    assert "Invent nothing" in printed
    assert not endpoint.asked
    assert not manifest.folder.with_name("pairs").exists()


def test_a_dry_run_writes_nothing_where_all_is_answered(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(Loopback()) as endpoint:
        work = labelling(manifest, endpoint, answers=tmp_path / "answers.jsonl")
        run(work)
        flags = ["--base-url", endpoint.url, "--model", "tiny", "--answers", str(tmp_path / "answers.jsonl")]
        flags += ["--sample", "20", "--dry-run", "--out"]
        assert main(["curate", "label", str(manifest.folder), *flags, str(tmp_path / "more")]) == 0
        assert "20 descriptions, 0 requests" in capsys.readouterr().out
        assert main(["curate", "label", str(manifest.folder), *flags, str(work.out)]) == 0
        assert "is finished; nothing would be asked" in capsys.readouterr().out
    assert not (tmp_path / "more").exists()


def test_the_key_is_nowhere_on_disk_and_another_call_is_refused(manifest: Manifest) -> None:
    with serve(Loopback(key="sk-secret-1234")) as endpoint:
        work = labelling(manifest, endpoint)
        run(work, "sk-secret-1234")
        with pytest.raises(InputError, match="result of another call"):
            run(replace(work, seed=1), "sk-secret-1234")

    files = [path for path in manifest.folder.parent.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not any(b"sk-secret" in path.read_bytes() for path in files)


def test_the_sample_is_of_noisy_texts_and_the_same_whatever_the_parts(tmp_path: Path) -> None:
    rows = [noisy_row(number) for number in range(60)]
    rows[0]["kind"], rows[1]["excluded"], rows[2]["texts"] = "clean", "id of clotho", ["", "  "]
    rows[3]["texts"], rows[3]["title"], rows[3]["tags"] = [], "", []
    rows[4]["texts"] = ["word " * 200_000]
    rows[5]["texts"] = list(TABLE)
    many = write_noisy(tmp_path / "many", rows, rows_per_part=7)
    one = write_noisy(tmp_path / "one", rows, rows_per_part=100)

    whole, counts = sample_noisy(many, 1_000, seed=0)
    some, _ = sample_noisy(one, 20, seed=0)
    other, _ = sample_noisy(one, 20, seed=1)

    texts = {each.id: each.text for each in whole}
    assert len(whole) == 60 - 3 + len(TABLE) - 1
    assert some == whole[:20]
    assert {each.id for each in some} != {each.id for each in other}
    assert texts["2"] == "Title: river_2.wav | Tags: river, field-recording"
    assert len(texts["4"]) <= MAX_CHARACTERS
    assert texts["4"].endswith("word")
    assert not texts.keys() & {"0", "1", "3"}
    assert (counts["noisy clips"], counts["without any text"], counts["cut"]) == (58, 1, 1)


def test_a_file_of_answers_is_written_by_one_process_and_damage_is_named(tmp_path: Path, manifest: Manifest) -> None:
    with serve(Loopback()) as endpoint:
        work = labelling(manifest, endpoint)
        run(work)
    path = work.out / "answers.jsonl"

    with Answers(path) as answers:
        assert len(answers) == 20
        with pytest.raises(InputError, match="another process"):
            Answers(path)
    path.write_bytes(b'{"key": 3}\n' + path.read_bytes())
    with pytest.raises(InputError, match="at byte 0"):
        Answers(path)
    whole = path.read_bytes()
    path.write_bytes(whole.removeprefix(b'{"key": 3}\n')[:-5])
    with Answers(path) as answers:
        assert len(answers) == 19
    for other in (b'{"my": "notes"}', b"x", whole.removeprefix(b'{"key": 3}\n') + b"notes"):
        path.write_bytes(other)
        with pytest.raises(InputError, match="no answer that was cut short"):
            Answers(path)
        assert path.read_bytes() == other
    path.write_bytes(b"x" * (1 << 21))
    with pytest.raises(InputError, match="over its longest"):
        Answers(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "a list"),
        ('{"outcome": "perhaps"}', "outcome is 'perhaps'"),
        ('{"outcome": "none", "flags": 3}', "flags is 3"),
        ('{"outcome": "none", "flags": [], "source": 3}', "source is 3"),
        ("[" * 100_000, "line 1"),
        ('{"a": ' + "1" * (1 << 20) + "}", "line 1"),
    ],
)
def test_a_damaged_pair_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line + "\n")

    with pytest.raises(InputError, match=message):
        list(read_pairs(path))


def test_a_manifest_without_noisy_texts_is_named(tmp_path: Path) -> None:
    row = noisy_row(0)
    row["kind"] = "clean"
    write_noisy(tmp_path / "manifest", [row])
    work = Labelling(
        read_manifest(tmp_path / "manifest"), tmp_path / "out", read_prompt(), Endpoint(base_url="http://a", model="b")
    )

    with pytest.raises(InputError, match="no noisy clip"):
        label(work, "key", go_on=lambda estimate: True)


@pytest.mark.parametrize("name", ["temperature", "timeout_seconds"])
def test_what_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="is nan; expected"):
        replace(Endpoint(base_url="http://localhost/v1", model="tiny"), **{name: float("nan")})
