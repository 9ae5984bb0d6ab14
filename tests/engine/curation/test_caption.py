"""`cacophony curate caption`: whose captions, which clips get them, and that a draw depends on the clip alone."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from cacophony.__main__ import main
from cacophony.data.curate.caption import clip_seed
from cacophony.data.curate.manifest import Row, new_row, part_name, read_manifest, write_manifest, write_part
from cacophony.engine.curation.model_captioner import CaptionDecoding
from cacophony.engine.curation.transformers_captioner import KeyedSampling, make_transformers_captioner
from cacophony.engine.inference import load

from .tiny_models import write_stage_1, write_stage_2
from .tiny_transformers import write_qwen_audio, write_whisper

CLIPS = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and a manifest of two parts: ten unlabeled clips, one that is damaged, and four of other kinds."""
    place = tmp_path_factory.mktemp("place")
    write_stage_2(place / "stage 2")
    write_stage_1(place / "stage 1")
    write_whisper(place / "whisper")
    write_qwen_audio(place / "qwen")
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for number in range(CLIPS):
        path = place / f"{number}.wav"
        sf.write(path, rng.normal(0, 0.02 * (number + 1), 9_000 + 400 * (7 * number % 10)), 16_000)
        rows.append(new_row(f"clip {number}", "made", "unlabeled", str(path), 0.6))
    (place / "damaged.wav").write_bytes(b"RIFF")
    damaged = new_row("damaged", "made", "unlabeled", str(place / "damaged.wav"), 1.0)
    clean, noisy, told, out = (rows[0] | {"id": name} for name in ("clean", "noisy", "told", "out"))
    others = [clean | {"kind": "clean"}, noisy | {"kind": "noisy"}]
    others += [told | {"synthetic_text": ["A dog."]}, out | {"excluded": "evaluation clip: same id"}]
    write_manifest_of(place / "manifest", [rows[:6], [*rows[6:], damaged, *others]])  # pyright: ignore[reportArgumentType]
    return place


def write_manifest_of(folder: Path, parts: list[list[Row]]) -> Path:
    folder.mkdir()
    for number, rows in enumerate(parts):
        write_part(folder / part_name(number), rows)
    write_manifest(folder, "made", {}, map(part_name, range(len(parts))))
    return folder


def caption(place: Path, out: Path, model: str, *flags: object, manifest: str = "manifest") -> int:
    words = ["curate", "caption", place / manifest, "--out", out, "--model", place / model, "--workers", 0]
    return main(list(map(str, [*words, "--device", "cpu", *flags])))


def captions(out: Path) -> dict[str, list[str]]:
    return {row["id"]: row["synthetic_text"] for row in read_manifest(out)}


@pytest.mark.parametrize("model", ["stage 2", "whisper", "qwen"])
def test_captions_of_unlabeled_clips_depend_on_the_clip_alone(model: str, place: Path, tmp_path: Path) -> None:
    flags = ["--temperature", 1, "--captions", 2, *([] if model == "stage 2" else ["--max-tokens", 8])]
    assert caption(place, tmp_path / "out", model, *flags, "--batch-size", 4) == 0
    done, counts = captions(tmp_path / "out"), read_manifest(tmp_path / "out").counts
    rows = [row for row in read_manifest(place / "manifest") if row["id"] in ("clip 3", "clip 8")]
    write_manifest_of(tmp_path / "two", [rows[::-1]])
    assert caption(place, tmp_path / "other", model, *flags, manifest=str(tmp_path / "two")) == 0
    assert caption(place, tmp_path / "seed", model, *flags, "--seed", 1, manifest=str(tmp_path / "two")) == 0

    assert all(1 <= len(done[f"clip {number}"]) <= 2 for number in range(CLIPS))
    assert done["damaged"] == done["clean"] == done["noisy"] == done["out"] == []
    assert done["told"] == ["A dog."]
    assert counts["captioned"] == CLIPS
    unusable = counts.get("captions without a word", 0) + counts.get("captions that a clip has twice", 0)
    assert counts["captions"] == 2 * CLIPS - unusable == sum(len(done[f"clip {number}"]) for number in range(CLIPS))
    assert counts["not captioned: not an audio file libsndfile can read"] == 1
    assert counts["left as it is: excluded"] == counts["left as it is: has captions of a model"] == 1
    assert counts["left as it is: clean"] == counts["left as it is: noisy"] == 1
    assert captions(tmp_path / "other") == {id: done[id] for id in ("clip 8", "clip 3")}
    assert all(captions(tmp_path / "seed")[id] != done[id] for id in ("clip 8", "clip 3"))


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_captions_without_chance(method: str, place: Path, tmp_path: Path) -> None:
    flags = ["--method", method, "--kinds", "clean", "unlabeled"]
    assert caption(place, tmp_path / "out", "stage 2", *flags) == 0
    model = load(place / "stage 2", device="cpu")
    done = captions(tmp_path / "out")

    expected = model.caption([place / f"{number}.wav" for number in range(CLIPS)], method=method)  # pyright: ignore[reportArgumentType]
    assert [done[f"clip {number}"] for number in range(CLIPS)] == [[text] if text else [] for text in expected]
    assert done["clean"] == done["clip 0"]
    assert done["noisy"] == []


def test_the_prompt_begins_the_text_and_is_no_part_of_the_caption(place: Path) -> None:
    waves = [np.random.default_rng(n).normal(0, 0.1, 12_000).astype(np.float32) for n in range(3)]
    decoding = CaptionDecoding(method="greedy")
    said = []
    for prompt in ("", "clotho > caption: "):
        captioner = make_transformers_captioner(str(place / "whisper"), decoding, prompt, 6, "cpu", 2)
        said.append(captioner(waves, [0, 1, 2]))

    assert said[0] != said[1]
    assert not any("clotho" in text for text in said[1])


def test_keyed_sampling_draws_from_the_softmax() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, -1.0]).repeat(20_000, 1)
    ids = torch.zeros(20_000, 3, dtype=torch.int64)
    sample = KeyedSampling(torch.arange(20_000), temperature=0.7)
    drawn = sample(ids, scores).argmax(1)
    share = torch.bincount(drawn, minlength=4) / len(drawn)

    assert torch.allclose(share, (scores[0] / 0.7).softmax(0), atol=0.015)  # four standard deviations
    assert not torch.equal(drawn, sample(torch.zeros(20_000, 4, dtype=torch.int64), scores).argmax(1))


def test_seeds_differ_by_clip_and_caption() -> None:
    row = new_row("a", "b", "unlabeled", "/x", 1.0)
    other = new_row("b", "a", "unlabeled", "/x", 1.0)

    assert clip_seed(0, row, 0) == clip_seed(0, new_row("a", "b", "clean", "/y", 2.0), 0)
    assert len({clip_seed(0, row, 0), clip_seed(1, row, 0), clip_seed(0, row, 1), clip_seed(0, other, 0)}) == 4
    assert 0 <= clip_seed(0, row, 0) < 2**63


SCRIPT = """
import os, signal, sys
import cacophony.data.curate.manifest as manifest
import cacophony.data.curate.parts as parts
from cacophony.data.curate.actors import Actors
from cacophony.data.curate.caption import caption
from pathlib import Path

source, out, die = sys.argv[1:]
real, written = manifest.write_part, []

def write_part(path, rows, counts=None):
    if die == "yes" and written:
        path.with_name(path.name + ".half.tmp").write_bytes(b"PAR1")
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(path.name)
    real(path, rows, counts)

def make():
    return lambda waves, seeds: [f"{len(wave)} samples and {seed}" for wave, seed in zip(waves, seeds)]

parts.write_part = write_part
result = caption(
    manifest.read_manifest(source), Path(out), make_captioner=make, model={}, captions=2, seed=3,
    actors=Actors(workers=0), progress=False,
)
print(result.digest, len(written))
"""


def test_killed_between_parts_it_ends_the_same(place: Path, tmp_path: Path) -> None:
    def start(name: str, die: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT, str(place / "manifest"), str(tmp_path / name), die]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = start("whole", "no").stdout.split()
    assert start("killed", "yes").returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()

    assert start("killed", "no").stdout.split() == [whole[0], "1"]
    assert whole[1] == "2"
    assert not list((tmp_path / "killed").glob("*.tmp"))


def test_models_that_cannot_caption_are_refused_in_a_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in (place / "whisper").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes() if file.suffix == ".json" else b"\x08")
    refused = [
        (place / "stage 1", [], "holds a stage-1 model; expected stage 2"),
        (place / "stage 2", ["--prompt", "x"], "takes none"),
        (place / "stage 2", ["--method", "greedy", "--captions", "2"], "gives the same caption 2 times"),
        (place / "stage 2", ["--captions", "0"], "captions is 0"),
        (place / "stage 2", ["--temperature", "0"], "temperature is 0"),
        (tmp_path / "bert", [], "a bert does not turn audio into text"),
        (tmp_path / "file", [], "is a file"),
        (tmp_path / "empty", [], "cannot be loaded by transformers"),
        (damaged, [], "cannot be loaded by transformers"),
    ]
    for model, flags, message in refused:
        capsys.readouterr()
        assert caption(place, tmp_path / "out", str(model), *flags) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.splitlines()[-1].startswith("cacophony: ")
        assert not (tmp_path / "out").exists()
