"""The commands of one evaluation each: what they print is what they write."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cacophony.__main__ import main

from .corpora import Made, make_clotho

Refused = Callable[[list[str]], str]


def test_retrieval_prints_a_table_and_writes_the_same_as_json(
    model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    truth = make_clotho(tmp_path / "data", 12)
    gone = truth.audio[min(truth.audio)]
    gone.unlink()
    words = ["--data", str(truth.root), "--json", str(tmp_path / "out.json"), "--cache", str(tmp_path / "kept")]
    assert main(["evaluate", "retrieval", str(model_directory), *words]) == 0
    record, printed = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert printed.startswith(f"clotho: 11 clips found, 1 missing: {gone.name} (no audio file)\n11 clips, 55 captions")
    assert f"{100 * record['text_to_audio']['r@5']:.1f} (" in printed
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_zero_shot_takes_templates_and_draws_the_confusion(
    model_directory: Path, made: Callable[[str], Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--data", str(made("esc50").root), "--json", str(tmp_path / "out.json")]
    words += ["--template", "a {}", "--template", "{} far away", "--confusion", str(tmp_path / "confusion.png")]
    assert main(["evaluate", "zero-shot", str(model_directory), *words]) == 0
    record, printed = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert record["templates"] == ["a {}", "{} far away"]
    assert "templates: a {} | {} far away" in printed
    assert f"top_1: {100 * record['top_1']:.1f}" in printed
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_captioning_without_its_package_names_the_extra(
    model_directory: Path, made: Callable[[str], Made], refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refused(["evaluate", "caption", str(model_directory), "--data", str(made("clotho").root)])
    assert "cacophony-engine[evaluate]" in message


def test_captioning_prints_the_scores_and_writes_the_captions(
    model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr("cacophony.engine.evaluate.caption_metrics.has_java", lambda: False)
    truth = make_clotho(tmp_path / "data", 4)
    words = ["--data", str(truth.root), "--json", str(tmp_path / "out.json"), "--method", "beam", "--beams", "3"]
    assert main(["evaluate", "caption", str(model_directory), *words]) == 0
    record, printed = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert record["decoding"] == {"method": "beam", "temperature": 0.1, "beams": 3, "seed": 0}
    assert {one["name"]: one["references"] for one in record["captions"]} == truth.captions
    assert f"cider    {record['scores']['cider']:.3f}" in printed
    assert "meteor   not computed: needs Java" in printed


@pytest.mark.parametrize("command", ["retrieval", "zero-shot"])
def test_a_directory_of_another_layout_is_refused(
    model_directory: Path, tmp_path: Path, refused: Refused, command: str
):
    message = refused(["evaluate", command, str(model_directory), "--data", str(tmp_path)])
    assert "looked for" in message


@pytest.mark.parametrize("flags", [["--batch-size", "0"], ["--dataset", "esc51"], ["--json", "/no/such/place.json"]])
def test_wrong_flags_are_refused(model_directory: Path, tmp_path: Path, refused: Refused, flags: list[str]):
    refused(["evaluate", "zero-shot", str(model_directory), "--data", str(tmp_path), *flags])
