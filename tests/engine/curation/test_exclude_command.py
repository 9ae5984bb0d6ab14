"""`cacophony curate exclude`: all passes in one command, its report, and what it refuses."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest
from cacophony.__main__ import main
from cacophony.data.curate.exclude import NEAR_DUPLICATE, SAME_ID
from cacophony.data.curate.manifest import read_manifest

from ...data.curate.made_corpus import MadeCorpus, make_corpus
from .tiny_models import write_stage_1, write_stage_2

COSINE = 0.9995
"""A network without training takes what is coded anew for another clip; fingerprints do not."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> MadeCorpus:
    folder = tmp_path_factory.mktemp("made")
    corpus = make_corpus(folder / "corpus", 120, seed=1)
    corpus.manifest(folder / "manifest")
    return corpus


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stage_2(tmp_path_factory.mktemp("models") / "stage 2")


def command(corpus: MadeCorpus, out: Path, *flags: object) -> list[str]:
    words = ["curate", "exclude", corpus.folder.parent / "manifest", "--out", out, "--workers", 0, *flags]
    return list(map(str, words))


def test_all_passes_and_their_report(
    corpus: MadeCorpus, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = corpus.evaluation / "freesound.txt", corpus.evaluation / "youtube.txt"
    flags = ["--evaluation", corpus.evaluation / "audio", "--freesound-ids", lists[0], "--youtube-ids", lists[1]]
    flags += ["--model", model, "--cosine", COSINE, "--device", "cpu", "--namespaces", "wavcaps=none"]

    assert main(command(corpus, tmp_path / "out", *flags)) == 0
    said = capsys.readouterr().out
    rows = list(read_manifest(tmp_path / "out"))
    with (tmp_path / "out-report" / "pairs.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))
    summary = json.loads((tmp_path / "out-report" / "summary.json").read_text())

    assert {(row["source"], row["id"]) for row in rows if row["excluded"]} == {
        (overlap.source, overlap.id) for overlap in corpus.overlaps
    }
    assert {pair["pass"] for pair in pairs} == {"id", "pcm", "fingerprint", "embedding"}
    assert {pair["evaluation_clip"] for pair in pairs if pair["pass"] == "embedding"} == {
        f"audio/{overlap.evaluation}" for overlap in corpus.overlaps if overlap.how in ("format", "rate")
    }
    assert summary["scores"]["embedding"]["highest_kept"] < COSINE <= summary["scores"]["embedding"]["lowest_found"]
    assert summary["found_by_pass"]["id"] == 3
    assert f"  {SAME_ID}: 3 (" in said
    assert f"threshold {COSINE:g}" in said
    assert matplotlib.image.imread(tmp_path / "out-report" / "scores.png").std() > 0.05


def test_each_pass_can_be_left_out_and_the_same_call_does_nothing(corpus: MadeCorpus, tmp_path: Path) -> None:
    audio, out = corpus.evaluation / "audio", tmp_path / "out"
    assert main(command(corpus, out, "--evaluation", audio, "--no-fingerprint", "--cache", tmp_path / "kept")) == 0
    copies = {overlap.id for overlap in corpus.overlaps if overlap.how == "format"}
    digest = read_manifest(out).digest
    cached = [(path.name, path.stat().st_mtime_ns) for path in sorted((tmp_path / "kept").iterdir())]

    assert {row["id"] for row in read_manifest(out) if row["excluded"]} == copies
    assert main(command(corpus, out, "--evaluation", audio, "--no-fingerprint", "--cache", tmp_path / "kept")) == 0
    assert read_manifest(out).digest == digest
    assert [(path.name, path.stat().st_mtime_ns) for path in sorted((tmp_path / "kept").iterdir())] == cached


def test_a_manifest_is_an_evaluation_set_with_ids(corpus: MadeCorpus, tmp_path: Path) -> None:
    whole = corpus.folder.parent / "manifest"

    flags = ["--evaluation", whole, "--no-pcm", "--no-fingerprint"]
    assert main(command(corpus, tmp_path / "out", *flags)) == 0
    by_id = {row["source"] for row in read_manifest(tmp_path / "out") if row["excluded"] == SAME_ID}
    assert by_id == {"audiocaps", "freesound", "wavcaps", "acav"}


def test_what_cannot_be_done_is_refused_in_a_line(
    corpus: MadeCorpus, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = corpus.evaluation / "audio"
    (tmp_path / "ids.txt").write_text("12345\nx/../y\n")
    stage_1 = write_stage_1(tmp_path / "stage 1")
    refused: list[tuple[list[object], str]] = [
        ([], "nothing to compare with"),
        (["--model", model], "name them with --evaluation"),
        (["--evaluation", audio, "--model", stage_1], "holds a stage-1 model; expected stage 2"),
        (["--evaluation", audio, "--model", audio], "is not a model directory"),
        (["--freesound-ids", tmp_path / "ids.txt"], "ids.txt, line 2"),
        (["--youtube-ids", tmp_path / "none.txt"], "none.txt"),
        (["--evaluation", tmp_path / "none"], "no such folder"),
        (["--evaluation", audio, "--namespaces", "laion"], "expected source=namespace"),
        (["--evaluation", audio, "--similarity", 2], "similarity is 2.0"),
    ]
    for flags, message in refused:
        assert main(command(corpus, tmp_path / "out", *flags)) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.txt", "stage 1"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PAR1")])
def test_a_report_that_is_gone_is_named(
    damage: Callable[[Path], None], corpus: MadeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--freesound-ids", corpus.evaluation / "freesound.txt"]
    assert main(command(corpus, tmp_path / "out", *flags)) == 0
    damage(tmp_path / "out" / "report-00000.parquet")

    assert main(command(corpus, tmp_path / "out", *flags)) == 2
    assert "report-00000.parquet: cannot be read" in capsys.readouterr().err


def test_embeddings_alone(corpus: MadeCorpus, model: Path, tmp_path: Path) -> None:
    flags = ["--evaluation", corpus.evaluation / "audio", "--no-pcm", "--no-fingerprint", "--model", model]
    assert main(command(corpus, tmp_path / "out", *flags, "--cosine", COSINE, "--device", "cpu")) == 0
    copies = {overlap.id for overlap in corpus.overlaps if overlap.how in ("format", "rate")}

    assert {(row["id"], row["excluded"]) for row in read_manifest(tmp_path / "out") if row["excluded"]} == {
        (id, NEAR_DUPLICATE) for id in copies
    }
