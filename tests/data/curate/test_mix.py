"""A mix: what it takes, what it leaves out, and what packing makes of it."""

import json
from collections import Counter
from pathlib import Path

import pytest
from cacophony.data.curate import mix as mix_module
from cacophony.data.curate.manifest import Manifest, Row, new_row, part_name, read_manifest, write_manifest, write_part
from cacophony.data.curate.mix import Recipe, copies_of, mix
from cacophony.data.pack import pack
from cacophony.data.pack_report import read_report
from cacophony.data.shards import Shards
from cacophony.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st

from .made_corpus import MadeCorpus, make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> MadeCorpus:
    """Noisy clips have five variants, the third and the fifth with a flag; unlabeled ones a synthetic caption."""
    made = make_corpus(tmp_path_factory.mktemp("made") / "corpus", 120, damage=0.0)
    for number, row in enumerate(made.rows):
        if row["kind"] == "noisy":
            texts = [f"variant {n} of {number}" for n in (1, 2, 3, 1, 5)]
            flags = [[], [], ["url"], [], ["names", "url"]]
            row["cleaned"] = [{"text": text, "flags": its} for text, its in zip(texts, flags, strict=True)]
        if row["kind"] == "unlabeled":
            row["synthetic_text"] = [f"sound {number}"]
    made.rows[3]["excluded"] = "same id: 123"
    return made


@pytest.fixture(scope="module")
def manifest(corpus: MadeCorpus, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return corpus.manifest(tmp_path_factory.mktemp("manifest") / "m", rows_per_part=50)


def kinds(rows: Manifest | list[Row]) -> Counter[str]:
    return Counter(row["kind"] for row in rows)


def test_presets_take_one_kind_more_each(manifest: Manifest, corpus: MadeCorpus, tmp_path: Path) -> None:
    there = kinds([row for row in corpus.rows if not row["excluded"]])
    taken = {preset: kinds(mix([manifest], tmp_path / preset, Recipe(preset=preset))) for preset in ("v1", "v2", "v3")}

    assert taken["v1"] == {"clean": there["clean"]}
    assert taken["v2"] == {"clean": there["clean"], "noisy": there["noisy"]}
    assert taken["v3"] == there


def test_captions_are_what_was_published_or_what_no_flag_keeps_out(manifest: Manifest, tmp_path: Path) -> None:
    before = {(row["source"], row["id"]): row for row in manifest}
    mixed = mix([manifest], tmp_path / "strict", Recipe())
    allowing = mix([manifest], tmp_path / "allowing", Recipe(allowed_flags=("url",)))
    noisy = kinds(mixed)["noisy"]

    for rows, numbers in ((mixed, (1, 2)), (allowing, (1, 2, 3))):
        for row in rows:
            published = before[row["source"], row["id"]]
            stem = published["cleaned"][0]["text"].removeprefix("variant 1") if published["cleaned"] else ""
            wanted = {"clean": published["texts"], "noisy": [f"variant {n}{stem}" for n in numbers], "unlabeled": []}
            assert row["texts"] == wanted[row["kind"]]
            assert row["synthetic_text"] == published["synthetic_text"]
    assert mixed.counts["variant left out: url"] == 2 * noisy
    assert mixed.counts["variant left out: names"] == noisy
    assert mixed.counts["left out: excluded (same id)"] == 1
    assert "variant left out: url" not in allowing.counts


@settings(max_examples=30)
@given(weight=st.floats(0, 5), more=st.floats(0, 2), seed=st.integers(0, 9), id=st.text(max_size=5))
def test_a_larger_weight_takes_the_same_and_more(weight: float, more: float, seed: int, id: str) -> None:
    few, many = (copies_of(value, seed, "s", id.encode(errors="replace").decode()) for value in (weight, weight + more))

    assert few <= many
    assert abs(few - weight) < 1


def test_weights_take_their_share() -> None:
    taken = [copies_of(2.25, 1, "freesound", str(number)) for number in range(4_000)]

    assert set(taken) == {2, 3}
    assert abs(sum(taken) / 4_000 - 2.25) < 0.03  # four standard deviations
    assert taken != [copies_of(2.25, 2, "freesound", str(number)) for number in range(4_000)]


def test_a_source_outweighs_its_kind_and_repeats_have_ids_of_their_own(manifest: Manifest, tmp_path: Path) -> None:
    before = Counter(row["source"] for row in manifest if not row["excluded"])
    recipe = Recipe(preset="v2", weights={"clean": 0, "clotho": 1, "wavcaps": 3, "acav": 0.5}, seed=3)
    mixed = mix([manifest], tmp_path / "mix", recipe)
    after = Counter(row["source"] for row in mixed)
    ids = [(row["source"], row["id"]) for row in mixed]

    assert after["clotho"] == before["clotho"]
    assert after["freesound"] == before["freesound"]
    assert after["wavcaps"] == 3 * before["wavcaps"]
    assert 0 < after["acav"] < before["acav"]
    assert after["audiocaps"] == after["laion"] == 0
    assert len(set(ids)) == len(ids)
    assert [id for source, id in ids if source == "wavcaps"][:3] == ["100000", "100000#2", "100000#3"]
    assert mixed.counts["repeated"] == 2 * before["wavcaps"]


def test_clips_of_two_manifests_are_taken_once(manifest: Manifest, tmp_path: Path) -> None:
    one, two = mix([manifest], tmp_path / "one", Recipe()), mix([manifest, manifest], tmp_path / "two", Recipe())

    assert list(one) == list(two)
    assert two.counts["left out: (source, id) that came before"] == manifest.rows


def test_what_one_manifest_excludes_does_not_come_back_from_a_later_one(tmp_path: Path) -> None:
    manifests = []
    for name, reason in (("checked", "evaluation clip: same id"), ("not checked", "")):
        rows = [new_row(f"{number}", "clotho", "clean", f"/{number}.wav", 2.0) for number in range(2)]
        for row in rows:
            row["texts"] = ["Rain falls."]
        rows[1]["excluded"] = reason
        (tmp_path / name).mkdir()
        write_part(tmp_path / name / part_name(0), rows)
        write_manifest(tmp_path / name, "caption", {}, [part_name(0)])
        manifests.append(read_manifest(tmp_path / name))

    assert [row["id"] for row in mix(manifests, tmp_path / "mixed", Recipe())] == ["0"]


def test_a_mix_that_was_killed_ends_the_same(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mix_module, "PART_ROWS", 30)
    whole = mix([manifest], tmp_path / "whole", Recipe())
    real, calls = write_part, []

    def dies(*args: object) -> None:
        calls.append(real(*args))  # pyright: ignore[reportArgumentType]
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mix_module, "write_part", dies)
        with pytest.raises(KeyboardInterrupt):
            mix([manifest], tmp_path / "out", Recipe())
    assert not (tmp_path / "out").exists()
    again = mix([manifest], tmp_path / "out", Recipe())

    assert again.digest == whole.digest
    assert {p.name for p in again.folder.iterdir()} == {"manifest.json", *map(part_name, range(len(again.parts)))}
    with pytest.raises(InputError, match="result of another call"):
        mix([manifest], tmp_path / "out", Recipe(seed=1))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"weights": {"freesuond": 1}}, "weight of 'freesuond': no such source; there are acav, audiocaps"),
        ({"weights": {"clean": 0, "noisy": 0, "unlabeled": 0}}, "the mix has no clip .*weight of"),
        ({"weights": {"clean": -1}}, "weight of 'clean' is -1; expected 0 to 100"),
        ({"weights": {"clean": float("nan")}}, "weight of 'clean' is nan"),
        ({"preset": "v4"}, "preset is 'v4'; expected v1, v2, v3"),
    ],
)
def test_a_wrong_recipe_is_named_and_leaves_nothing(
    manifest: Manifest, tmp_path: Path, recipe: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        mix([manifest], tmp_path / "out", Recipe(**recipe))  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_a_mix_is_packed_with_its_captions_and_sources(manifest: Manifest, tmp_path: Path) -> None:
    mixed = mix([manifest], tmp_path / "mix", Recipe(preset="v3", weights={"wavcaps": 2, "freesound": 0}))
    (tmp_path / "mix" / "card.md").write_text("a card")
    report = pack(mixed.folder, tmp_path / "one", workers=1, clips_per_shard=50)
    pack(mixed.folder, tmp_path / "two", layout="manifest", workers=2, clips_per_shard=50)

    assert report.kept == mixed.rows
    with Shards.open(tmp_path / "one") as shards:
        clips = list(map(shards.clip, range(len(shards))))
    assert [(clip.source, list(clip.captions), list(clip.synthetic_captions)) for clip in clips] == [
        (f"{row['source']}/{row['id']}", row["texts"], row["synthetic_text"]) for row in mixed
    ]
    assert [clip.samples for clip in clips] == [round(16_000 * row["seconds"]) for row in mixed]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_what_became_unusable_since_is_skipped_and_named(corpus: MadeCorpus, tmp_path: Path) -> None:
    rows = [row.copy() for row in corpus.rows[:3]]
    rows[0]["path"], rows[1]["texts"] = str(tmp_path / "gone.wav"), ["x" * 20_000, "short"]
    source = tmp_path / "source"
    source.mkdir()
    write_part(source / part_name(0), rows)
    write_manifest(source, "made", {}, [part_name(0)])
    mixed = mix([read_manifest(source)], tmp_path / "mix", Recipe())
    pack(mixed.folder, tmp_path / "out", workers=1)

    names = [f"{row['source']}/{row['id']}" for row in rows]
    assert [(row.file, row.status, row.reason) for row in read_report(tmp_path / "out") if row.reason] == [
        (names[0], "skipped", "file cannot be opened"),
        (names[1], "warning", "caption over 10000 characters"),
    ]


def test_other_manifests_are_not_packed(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="result of 'made', whose texts need not be captions; make a mix of it"):
        pack(manifest.folder, tmp_path / "out")
    with pytest.raises(InputError, match="leave out --captions"):
        pack(manifest.folder, tmp_path / "out", layout="manifest", captions=tmp_path / "x.csv")
    folder = tmp_path / "a corpus with a file of that name"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"text": "rain"}))
    with pytest.raises(InputError, match="no audio files"):
        pack(folder, tmp_path / "out")
    with pytest.raises(InputError, match="no manifest"):
        pack(tmp_path, tmp_path / "out", layout="manifest")
