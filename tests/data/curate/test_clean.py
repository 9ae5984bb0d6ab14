"""Cleaning a manifest: the same captions whatever the batches, workers and kills; every row kept, every flag told."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cacophony.__main__ import main
from cacophony.data.curate.actors import Actors
from cacophony.data.curate.clean import clean, clip_key, make_work
from cacophony.data.curate.manifest import Manifest, read_manifest
from cacophony.data.curate.noisy_text import cleaner_inputs
from cacophony.data.curate.residue import residue
from cacophony.data.curate.variants import Cleaner, GumbelNoise, Sampling
from cacophony.errors import InputError

from .noisy import noisy_row, write_noisy
from .tiny_t5 import write_tiny_t5

HERE = Actors(workers=0)
QUICK = Sampling(variants=3, max_new_tokens=8, batch_tokens=400)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """40 clips: one clean, one excluded, one of two descriptions, one of title and tags, one of nothing."""
    rows = [noisy_row(number) for number in range(40)]
    rows[3]["kind"], rows[14]["excluded"] = "clean", "id of clotho"
    rows[15]["texts"] = ["A gate creaks.", "An owl " * 1_000]
    rows[16]["texts"] = []
    rows[27]["texts"], rows[27]["title"], rows[27]["tags"] = [" "], "", []
    return write_noisy(tmp_path_factory.mktemp("clean") / "source", rows)


@pytest.fixture(scope="module")
def cleaner(source: Manifest) -> Path:
    texts = [text for row in source for text in row["texts"]]
    return write_tiny_t5(source.folder.with_name("cleaner"), texts)


@pytest.fixture(scope="module")
def whole(source: Manifest, cleaner: Path) -> Manifest:
    return clean(source, source.folder.with_name("whole"), cleaner, QUICK, HERE)


def test_every_noisy_description_has_its_variants_and_nothing_else_changes(source: Manifest, whole: Manifest) -> None:
    before, after = list(source), list(whole)
    counts = dict.fromkeys(range(40), 3) | {3: 0, 14: 0, 15: 6, 27: 0}

    assert {number: len(row["cleaned"]) for number, row in enumerate(after)} == counts
    assert [row | {"cleaned": []} for row in after] == before
    variants = [variant for row in after for variant in row["cleaned"]]
    assert all(variant["flags"] == residue(variant["text"]) for variant in variants)
    assert whole.counts["variants"] == len(variants) == 114
    assert whole.counts["descriptions"] == 38
    assert whole.counts["excluded clips"] == whole.counts["clips without any text"] == 1
    assert whole.counts["descriptions cut"] == 1
    assert len({variant["text"] for variant in variants}) > 100  # drawn, not the likeliest again and again


def test_a_caption_depends_on_its_own_key_alone(source: Manifest, cleaner: Path) -> None:
    model = Cleaner(cleaner, torch.device("cpu"), "float32")
    texts = [text for row in source for text in cleaner_inputs(row)][:12]
    keys = [clip_key(0, "x", str(number), 0) for number in range(12)]
    wide = Sampling(variants=2, max_new_tokens=8, batch_tokens=100_000)
    one_by_one = Sampling(variants=2, max_new_tokens=8, batch_tokens=1)

    together = model.sample(texts, keys, wide)
    backwards = model.sample(texts[::-1], keys[::-1], one_by_one)[::-1]
    more = model.sample(texts, keys, Sampling(variants=4, max_new_tokens=8))
    others = model.sample(texts, [key + 1 for key in keys], wide)

    assert together == backwards
    assert [each[:2] for each in more] == together
    assert sum(one == other for one, other in zip(together, others, strict=True)) == 0
    assert all(first != second for first, second in together)
    assert model.sample([], [], wide) == []


@pytest.mark.parametrize("position", [0, 1, 7])
def test_tokens_are_drawn_with_their_probabilities(position: int) -> None:
    probabilities = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    draws = 40_000
    noise = GumbelNoise(torch.arange(draws) * 7919 % (1 << 32))
    tokens = noise(torch.zeros(draws, position), probabilities.log().expand(draws, -1)).argmax(1)

    for token, p in enumerate(probabilities.tolist()):
        share = float((tokens == token).float().mean())
        assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / draws)
    follows = float((tokens[1:] == tokens[:-1]).float().mean())
    expected = float((probabilities**2).sum())
    assert abs(follows - expected) < 4.5 * math.sqrt(expected * (1 - expected) / draws)


def test_draws_stay_within_top_p_and_cold_draws_are_the_likeliest(source: Manifest, cleaner: Path) -> None:
    model = Cleaner(cleaner, torch.device("cpu"), "float32")
    texts = [text for row in source for text in cleaner_inputs(row)][:8]
    greedy = model.greedy(texts, max_new_tokens=8, batch_tokens=1_000)
    narrow = Sampling(variants=2, max_new_tokens=8, top_p=1e-6)
    cold = Sampling(variants=2, max_new_tokens=8, temperature=1e-4, top_p=1.0)

    for sampling in (narrow, cold):
        assert model.sample(texts, list(range(8)), sampling) == [[text, text] for text in greedy]


_KILLED = """
import sys, time
from pathlib import Path
from cacophony.data.curate import clean as module
from cacophony.data.curate.actors import Actors
from cacophony.data.curate.manifest import read_manifest
from cacophony.data.curate.variants import Sampling
source, out, cleaner = map(Path, sys.argv[1:])
real, parts = module.CleanWork.__call__, []
def work(self, rows, counts):
    parts.append(rows)
    time.sleep(60 if len(parts) == 3 else 0)
    return real(self, rows, counts)
module.CleanWork.__call__ = work
quick = Sampling(variants=3, max_new_tokens=8, batch_tokens=400)
module.clean(read_manifest(source), out, cleaner, quick, Actors(workers=0))
"""


def test_the_same_manifest_after_a_kill_and_from_two_workers(
    source: Manifest, cleaner: Path, whole: Manifest, tmp_path: Path
) -> None:
    argv = [sys.executable, "-c", _KILLED, str(source.folder), str(tmp_path / "killed"), str(cleaner)]
    child = subprocess.Popen(argv, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while not (tmp_path / ".killed.curating" / "part-00001.parquet").exists():
            assert child.poll() is None
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (tmp_path / "killed").exists()

    assert clean(source, tmp_path / "killed", cleaner, QUICK, Actors(workers=2)).digest == whole.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed"]


def test_the_command_tells_what_it_flagged(
    source: Manifest, cleaner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cleaner", str(cleaner), "--out", str(tmp_path / "out"), "--workers", "0", "--variants", "1"]
    assert main(["curate", "clean", str(source.folder), *flags, "--max-new-tokens", "4"]) == 0

    counts = read_manifest(tmp_path / "out").counts
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"38 captions of 38 descriptions, {counts['unflagged variants']} without a flag"
    for line in printed[1:-1]:
        number, flag = line.split()
        assert counts[f"flag {flag}"] == int(number)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cleaner", "{tmp}"], "no config.json"),
        (["--top-p", "0"], "top-p 0.0"),
        (["--variants", "0"], "variants is 0"),
        (["--cleaner", "{cleaner}/config.json"], "no cleaner"),
    ],
)
def test_what_cannot_be_cleaned_is_refused_by_name(
    source: Manifest,
    cleaner: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [flag.format(tmp=tmp_path, cleaner=cleaner) for flag in flags]
    argv = ["curate", "clean", str(source.folder), "--out", str(tmp_path / "out"), "--workers", "0"]

    assert main([*argv, "--cleaner", str(cleaner), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_cleaned_manifest_and_a_missing_gpu_are_named(
    whole: Manifest, cleaner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is cleaned already"):
        clean(whole, tmp_path / "again", cleaner, QUICK, HERE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="sees no GPU"):
        make_work(cleaner, QUICK, on_gpu=True, dtype="bfloat16")


def test_a_temperature_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="temperature is nan"):
        Sampling(temperature=float("nan"))
