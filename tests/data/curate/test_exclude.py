"""No evaluation clip in training: what is planted is found, nothing else is, whatever kills the run or shares it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import soxr
from cacophony.data.curate.actors import Actors
from cacophony.data.curate.audio_features import Passes
from cacophony.data.curate.clip_ids import NAMESPACES, freesound_id
from cacophony.data.curate.evaluation_clips import EvaluationParts, failures, list_clips, load
from cacophony.data.curate.exclude import (
    NEAR_DUPLICATE,
    SAME_ID,
    SAME_SAMPLES,
    SAME_SOUND,
    UNREADABLE,
    Thresholds,
    exclude,
    report_name,
)
from cacophony.data.curate.id_lists import EvaluationIds, read_id_list
from cacophony.data.curate.manifest import Manifest, new_row, part_name, read_manifest, write_manifest, write_part
from cacophony.data.synthesis import Scene, render_scene
from cacophony.errors import InputError

from .made_corpus import MadeCorpus, make_corpus

HERE = Actors(workers=0)
ROWS_IN_PART = 40


@dataclass(frozen=True)
class Bands:
    """Embeds a clip as the shape of its spectrum: an embedder without a network."""

    def __call__(self, waves: Sequence[np.ndarray]) -> np.ndarray:
        spectra = [np.abs(np.fft.rfft(wave, 4_096))[:1_000].reshape(100, 10).mean(1) for wave in waves]
        vectors = np.log(np.stack(spectra) + 1e-2)
        vectors -= vectors.mean(1, keepdims=True)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


SOUND = Passes(pcm=True, fingerprint=True, make_embedder=None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> MadeCorpus:
    return make_corpus(tmp_path_factory.mktemp("made") / "corpus", 120, seed=3)


@pytest.fixture(scope="module")
def source(corpus: MadeCorpus, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return corpus.manifest(tmp_path_factory.mktemp("source") / "manifest", ROWS_IN_PART)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the evaluation clips, computed once for all tests with the same passes."""
    return tmp_path_factory.mktemp("cache")


def run(corpus: MadeCorpus, source: Manifest, out: Path, cache: Path, **changes: Any) -> Manifest:
    """Exclude with all that the corpus has for it."""
    ids = EvaluationIds()
    for name in ("freesound", "youtube"):
        read_id_list(corpus.evaluation / f"{name}.txt", name, ids)
    options: dict[str, Any] = {
        "ids": ids,
        "parts": EvaluationParts(list_clips([corpus.evaluation / "audio"]), cache, SOUND, ""),
        "namespaces": NAMESPACES,
        "windows": False,
        "thresholds": Thresholds(),
        "actors": HERE,
        "progress": False,
    }
    return exclude(source, out, **(options | changes))


@pytest.fixture(scope="module")
def result(corpus: MadeCorpus, source: Manifest, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return run(corpus, source, tmp_path_factory.mktemp("result") / "out", cache)


def found(manifest: Manifest) -> dict[tuple[str, str], str]:
    return {(row["source"], row["id"]): row["excluded"] for row in manifest if row["excluded"]}


def reports(manifest: Manifest) -> list[dict[str, Any]]:
    parts = range(len(manifest.parts))
    return [row for n in parts for row in pq.read_table(manifest.folder / report_name(n)).to_pylist()]


def test_each_planted_overlap_is_found_and_no_other_clip(corpus: MadeCorpus, result: Manifest) -> None:
    planted = {(overlap.source, overlap.id): overlap for overlap in corpus.overlaps}
    sounds = {freesound_id(overlap.id) for overlap in corpus.overlaps if overlap.how == "id"}
    # WavCaps lists the sounds of Freesound under the same numbers.
    same_sound = {("wavcaps", row["id"]) for row in corpus.rows if row["source"] == "wavcaps" and row["id"] in sounds}
    reasons = found(result)

    assert set(reasons) == set(planted) | same_sound
    for key, reason in reasons.items():
        how = "id" if key in same_sound else planted[key].how
        assert (
            reason
            in {
                "id": (SAME_ID,),
                "format": (SAME_SAMPLES,),
                "rate": (SAME_SOUND,),
                "reencode": (SAME_SOUND,),
            }[how]
        )
    assert [row["id"] for row in result] == [row["id"] for row in corpus.rows]
    assert sum(result.counts.values()) == len(corpus.rows)
    assert result.counts["acav: kept"] == sum(
        row["source"] == "acav" and (row["source"], row["id"]) not in reasons for row in corpus.rows
    )


def test_the_report_names_the_pairs(corpus: MadeCorpus, result: Manifest) -> None:
    pairs = {(row["source"], row["id"]): row["evaluation_clip"] for row in reports(result) if row["found"]}
    kept = [row["score"] for row in reports(result) if not row["found"]]

    for overlap in corpus.overlaps:
        if overlap.how != "id" and found(result)[overlap.source, overlap.id] != SAME_ID:
            assert pairs[overlap.source, overlap.id] == f"audio/{overlap.evaluation}"
    assert not kept  # what is no copy is not even near
    assert min(row["score"] for row in reports(result) if row["found"]) > 0.6


def test_embeddings_find_what_fingerprints_were_not_asked_for(
    corpus: MadeCorpus, source: Manifest, tmp_path: Path
) -> None:
    passes = Passes(pcm=False, fingerprint=False, make_embedder=Bands)
    parts = EvaluationParts(list_clips([corpus.evaluation / "audio"]), tmp_path / "cache", passes, "bands")
    result = run(corpus, source, tmp_path / "out", tmp_path, ids=EvaluationIds(), parts=parts)
    planted = {(overlap.source, overlap.id) for overlap in corpus.overlaps if overlap.how != "id"}

    assert found(result) == dict.fromkeys(planted, NEAR_DUPLICATE)


def test_another_sound_of_the_same_thing_stays_and_a_poor_copy_goes(corpus: MadeCorpus, tmp_path: Path) -> None:
    """Two rings of one glass have similar fingerprints: their waves tell them apart."""
    rng = np.random.default_rng(4)
    evaluation, audio = tmp_path / "evaluation", tmp_path / "audio"
    evaluation.mkdir()
    audio.mkdir()
    rows = []
    for thing in ("glass", "bell", "horn", "dog", "engine", "guitar"):
        scene = Scene(thing, "high", "wavering", "single", "silence")
        held_out, other, listed = (render_scene(scene, 2.0, rng) for _ in range(3))
        sf.write(evaluation / f"{thing} 1.wav", listed, 16_000)
        sf.write(evaluation / f"{thing} 2.wav", held_out, 16_000)
        sf.write(audio / f"{thing}.wav", other, 16_000)
        sf.write(audio / f"{thing} again.mp3", soxr.resample(held_out, 16_000, 44_100), 44_100, compression_level=0.99)
        names = f"{thing}.wav", f"{thing} again.mp3"
        rows += [new_row(name, "x", "noisy", str(audio / name), 2.0) for name in names]
    (tmp_path / "source").mkdir()
    write_part(tmp_path / "source" / part_name(0), rows)
    write_manifest(tmp_path / "source", "made", {}, [part_name(0)])
    parts = EvaluationParts(list_clips([evaluation]), tmp_path / "cache", SOUND, "")

    result = run(corpus, read_manifest(tmp_path / "source"), tmp_path / "out", tmp_path, parts=parts)

    assert found(result) == {("x", row["id"]): SAME_SOUND for row in rows if row["id"].endswith("mp3")}
    told_apart = [row for row in reports(result) if row["correlation"] is not None and not row["found"]]
    assert told_apart  # by their waves alone
    pairs = {row["id"]: row["evaluation_clip"] for row in reports(result) if row["found"]}
    assert all(clip == f"evaluation/{id.split()[0]} 2.wav" for id, clip in pairs.items())
    assert max(row["correlation"] for row in told_apart) < 0.5


SCRIPT = """
import os, signal, sys
from pathlib import Path
import cacophony.data.curate.evaluation_clips as evaluation
import cacophony.data.curate.exclude as exclude
import cacophony.data.curate.manifest as manifest
from cacophony.data.curate.actors import Actors
from cacophony.data.curate.audio_features import Passes
from cacophony.data.curate.clip_ids import NAMESPACES
from cacophony.data.curate.id_lists import EvaluationIds

source, audio, cache, out, die_at = sys.argv[1:]
writes = 0
real = manifest.write_table

def write_table(path, table):
    global writes
    writes += 1
    if writes == int(die_at):
        path.with_name(path.name + ".half.tmp").write_bytes(b"PAR1")
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, table)

manifest.write_table = exclude.write_table = evaluation.write_table = write_table
evaluation.CLIPS_IN_PART = 6
passes = Passes(pcm=True, fingerprint=True, make_embedder=None)
parts = evaluation.EvaluationParts(evaluation.list_clips([Path(audio)]), Path(cache), passes, "")
result = exclude.exclude(
    manifest.read_manifest(source), Path(out), ids=EvaluationIds(), parts=parts, namespaces=NAMESPACES, windows=False,
    thresholds=exclude.Thresholds(), actors=Actors(workers=0), progress=False,
)
print(result.digest, writes)
"""


def test_killed_at_any_write_it_ends_the_same(corpus: MadeCorpus, tmp_path: Path) -> None:
    """Three parts of the evaluation, then a report and a part for each of two parts of the manifest."""
    source = tmp_path / "source"
    source.mkdir()
    planted = {(overlap.source, overlap.id) for overlap in corpus.overlaps}
    rows = [row for row in corpus.rows if (row["source"], row["id"]) in planted]
    for part in range(2):
        write_part(source / part_name(part), rows[part::2])
    write_manifest(source, "made", {}, map(part_name, range(2)))

    def start(name: str, die_at: int) -> subprocess.CompletedProcess[str]:
        arguments = [source, corpus.evaluation / "audio", tmp_path / f"cache {name}", tmp_path / name, die_at]
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    digest, writes = start("whole", 0).stdout.split()
    assert int(writes) == 3 + 2 * 2
    for die_at, left in ((2, 6), (6, 2)):
        name = f"killed at {die_at}"
        assert start(name, die_at).returncode == -signal.SIGKILL
        assert not (tmp_path / name).exists()
        again = start(name, 0)

        assert again.stdout.split() == [digest, str(left)]  # what was complete is not done again
        assert not list((tmp_path / name).glob("*.tmp"))


def test_the_same_manifest_and_report_on_actors(
    corpus: MadeCorpus, source: Manifest, result: Manifest, cache: Path, tmp_path: Path
) -> None:
    shared = run(corpus, source, tmp_path / "out", cache, actors=Actors(workers=2))

    assert shared.digest == result.digest
    assert reports(shared) == reports(result)


def test_damage_is_counted_by_reason_and_may_not_be_trained_on(corpus: MadeCorpus, tmp_path: Path) -> None:
    audio, evaluation = tmp_path / "audio", tmp_path / "evaluation"
    audio.mkdir()
    whole = next(row["path"] for row in corpus.rows)
    for name, data in (("empty", b""), ("text", b"404: no audio here"), ("cut", Path(whole).read_bytes()[:9_000])):
        (audio / f"{name}.wav").write_bytes(data)
    sf.write(audio / "silent.wav", np.zeros(16_000), 16_000)
    shutil.copy(whole, audio / "whole.wav")
    shutil.copytree(audio, evaluation)
    rows = [new_row(name, "x", "noisy", str(audio / f"{name}.wav"), 1.0) for name in ("empty", "text", "cut", "gone")]
    rows += [new_row(name, "x", "noisy", str(audio / f"{name}.wav"), 1.0) for name in ("silent", "whole")]
    rows.append(new_row("../../etc/passwd", "freesound", "noisy", "../../etc/passwd\0", 1.0))
    rows[-2]["excluded"] = "too long"
    (tmp_path / "source").mkdir()
    write_part(tmp_path / "source" / part_name(0), rows)
    write_manifest(tmp_path / "source", "made", {}, [part_name(0)])
    parts = EvaluationParts(list_clips([evaluation]), tmp_path / "cache", SOUND, "")

    result = run(corpus, read_manifest(tmp_path / "source"), tmp_path / "out", tmp_path, parts=parts)

    assert found(result) == {
        ("x", "empty"): UNREADABLE + "empty file (0 bytes)",
        ("x", "text"): UNREADABLE + "not an audio file libsndfile can read",
        ("x", "cut"): UNREADABLE + "truncated or damaged",
        ("x", "gone"): UNREADABLE + "file cannot be opened",
        ("x", "whole"): "too long",
        ("freesound", "../../etc/passwd"): UNREADABLE + "file cannot be opened",
    }
    assert result.counts["excluded before"] == 1
    assert result.counts["too plain for a fingerprint"] == 1
    assert result.counts["x: kept"] == 1
    assert sorted(failures(parts)) == ["evaluation/cut.wav", "evaluation/empty.wav", "evaluation/text.wav"]


def test_a_changed_evaluation_file_is_computed_again(corpus: MadeCorpus, tmp_path: Path) -> None:
    evaluation = shutil.copytree(corpus.evaluation / "audio", tmp_path / "evaluation")
    parts = EvaluationParts(list_clips([evaluation]), tmp_path / "cache", SOUND, "")
    before = parts.digest()
    os.utime(evaluation / "other 0.wav", (1, 1))

    assert parts.digest() != before
    assert EvaluationParts(parts.clips, parts.cache, SOUND, "other model").digest() != parts.digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1"), "cannot be read as Parquet"),
        (lambda path: pq.write_table(pq.read_table(path).slice(1), path), "not the features of"),
        (lambda path: pq.write_table(pq.read_table(path).drop_columns(["pcm"]), path), "not the features of"),
    ],
)
def test_a_damaged_part_of_the_cache_is_named(
    change: Callable[[Path], object], message: str, corpus: MadeCorpus, result: Manifest, cache: Path, tmp_path: Path
) -> None:
    del result  # has filled the cache
    parts = EvaluationParts(list_clips([corpus.evaluation / "audio"]), tmp_path, SOUND, "")
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    change(parts.path(0))

    with pytest.raises(InputError, match=message):
        load(parts)


def test_an_evaluation_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        list_clips([tmp_path / "gone"])
    with pytest.raises(InputError, match="holds no clip"):
        list_clips([tmp_path])
    (tmp_path / "a.m4a").touch()
    with pytest.raises(InputError, match=r"a\.m4a: of a kind that is not read"):
        list_clips([tmp_path])


def test_linked_folders_belong_to_an_evaluation_and_any_name_does(tmp_path: Path) -> None:
    for place in ("sets/plain", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.wav").touch()
    (tmp_path / "sets" / "clotho").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "sets" / os.fsdecode(b"\xff.wav")).touch()

    clips = list_clips([tmp_path / "sets"])
    assert [clip.name for clip in clips] == ["sets/clotho/a.wav", "sets/plain/a.wav", "sets/\ufffd.wav"]
    assert all(os.path.isfile(clip.path) for clip in clips)


def test_thresholds_are_cosines() -> None:
    for values in ({"similarity": 0.0}, {"cosine": 1.1}, {"similarity": float("nan")}):
        with pytest.raises(InputError, match="expected a number above 0"):
            Thresholds(**values)
