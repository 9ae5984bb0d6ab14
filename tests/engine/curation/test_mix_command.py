"""The card of a mix: its numbers are those of the rows, and nothing in it is markup of others."""

import json
import re
from pathlib import Path

import pytest
from cacophony.__main__ import main
from cacophony.data.curate.manifest import Manifest, Row, new_row, part_name, read_manifest, write_manifest, write_part
from cacophony.data.curate.mix import Recipe, mix
from cacophony.data.tokens import CaptionTokenizer
from cacophony.engine.curation import mix_figure
from cacophony.engine.curation.mix_command import mix_command, weights
from cacophony.engine.curation.mix_figure import SourceBar, source_bars
from cacophony.engine.curation.mix_stats import mix_stats, stages_of
from cacophony.errors import InputError

LICENCE = "cc|0 [x](http://y) <b>\n# heading"


def clip(number: int) -> Row:
    source, kind = (("sea", "clean"), ("land", "clean"), ("land", "unlabeled"))[number % 3]
    row = new_row(f"clip {number}", source, kind, f"/audio/{number}.wav", 10.0 + number)  # pyright: ignore[reportArgumentType]
    row["texts"] = ["a dog barks", "rain"] if kind == "clean" else []
    row["synthetic_text"] = [f"machine {number}"] if kind == "unlabeled" else []
    row["licence"] = LICENCE if number == 0 else ""
    return row


@pytest.fixture
def source(tmp_path: Path) -> Manifest:
    folder = tmp_path / "source"
    folder.mkdir()
    write_part(folder / part_name(0), [clip(number) for number in range(30)], {"excluded: too short": 7})
    settings = {"key": "``````\n# heading", "source": {"digest": "0" * 64, "stage": "list", "rows": 9, "counts": {}}}
    write_manifest(folder, "ingest", settings, [part_name(0)])
    return read_manifest(folder)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    CaptionTokenizer.train(["a dog barks", "rain", "machine 0 1 2 3 4 5 6 7 8 9"], 300).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def table(card: str, heading: str) -> list[list[str]]:
    section = card.split(f"## {heading}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in section.splitlines()[2:]]


def test_the_command_writes_a_mix_and_its_card(
    source: Manifest, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mix"
    assert mix_command([source.folder], out=out, weight=("land=2",), tokenizer=str(tokenizer)) == 0

    card = (out / "card.md").read_text()
    assert table(card, "Sources") == [
        ["sea", "clean", "10", f"{sum(range(10, 40, 3)) / 3600:.2f}", "20", "0"],
        ["land", "clean", "20", f"{2 * sum(range(11, 41, 3)) / 3600:.2f}", "40", "0"],
        ["land", "unlabeled", "20", f"{2 * sum(range(12, 42, 3)) / 3600:.2f}", "0", "20"],
    ]
    assert [row[:2] for row in table(card, "Kinds")] == [["clean", "30"], ["unlabeled", "20"]]
    assert ["ingest", "excluded: too short", "7"] in table(card, "What was left out, and other counts")
    assert ["mix", "repeated", "20"] in table(card, "What was left out, and other counts")
    assert [row[2] for row in table(card, "Licences")] == ["40", "9", "1"]
    for picture in ("sources.png", "lengths.png"):
        assert f"]({picture})" in card
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert [line for line in card.splitlines() if line.startswith("# ")] == ["# Data set"]
    assert "<b>" not in re.sub(r"\\<", "", card)
    assert capsys.readouterr().out.startswith("50 clips, ")

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    mix_command([source.folder], out=out, weight=("land=2",), tokenizer=str(tokenizer))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_stages_are_named_once_from_the_first_on(source: Manifest, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_part(other / part_name(0), [clip(99)])
    write_manifest(other, "clean", {"source": source.provenance}, [part_name(0)])
    stages = stages_of(mix([source, read_manifest(other)], tmp_path / "mix", Recipe()))

    assert [made["stage"] for made in stages] == ["list", "ingest", "clean", "mix"]
    assert [made["rows"] for made in stages] == [9, 30, 1, 31]
    assert stages[2]["settings"] == {"source": source.digest}
    assert stages[3]["settings"]["sources"] == [stages[1]["digest"], stages[2]["digest"]]
    assert json.dumps(stages)


def test_tokens_are_those_of_the_tokenizer(source: Manifest, tokenizer: Path) -> None:
    chosen = CaptionTokenizer.load(tokenizer)
    stats = mix_stats(source, chosen)
    texts = [text for row in source for text in [*row["texts"], *row["synthetic_text"]]]

    assert stats.tokens.tolist() == [len(tokens) for tokens in chosen.encode(texts, 100)]
    assert stats.seconds.tolist() == [row["seconds"] for row in source]
    assert stats.total.captions + stats.total.synthetic == len(texts)


def test_of_many_sources_the_smallest_are_drawn_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []

    def look(figure: mix_figure.Figure, path: Path) -> None:
        drawn.append([label.get_text() for label in figure.axes[0].get_yticklabels()])

    monkeypatch.setattr(mix_figure, "save_figure", look)
    source_bars(tmp_path / "x.png", [SourceBar(f"s{n}", "clean", 1, float(n)) for n in range(100)])

    assert len(drawn[0]) == mix_figure.MAX_BARS
    assert drawn[0][:2] == ["s99", "s98"]
    assert drawn[0][-1] == "71 others"
    with pytest.raises(InputError, match="nothing to draw"):
        source_bars(tmp_path / "x.png", [])


@pytest.mark.parametrize("text", ["freesound", "=2", "freesound=much", "freesound="])
def test_a_weight_that_is_none_is_named(text: str) -> None:
    with pytest.raises(InputError, match="expected NAME=NUMBER"):
        weights([text])


def test_a_flag_that_is_none_is_named(source: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["curate", "mix", str(source.folder), "--out", str(tmp_path / "mixed"), "--allow-flag", "names"]
    assert main(words) == 2
    assert "flag 'names' is none; expected some of file-name, " in capsys.readouterr().err
    assert not (tmp_path / "mixed").exists()
