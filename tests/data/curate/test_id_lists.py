"""Lists of evaluation ids: the files of the datasets, what matches, and what is refused by line."""

import json
from pathlib import Path

import pytest
from cacophony.data.curate.clip_ids import NAMESPACES
from cacophony.data.curate.id_lists import EvaluationIds, read_blacklist, read_id_list
from cacophony.data.curate.manifest import Row, new_row
from cacophony.errors import InputError

FREESOUND_FORMS = {
    "esc50.csv": "filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n",
    "UrbanSound8K.csv": (
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n100032-3-0-0.wav,100032,0,1,1,5,3,dog\n"
    ),
    "clotho_metadata_evaluation.csv": (
        "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
        "größe.wav,a;b,Not found,,,,\n"
        'b.wav,"a, b",,https://freesound.org/people/x/sounds/100032/,"[0, 9]",x,y\n'
    ),
    "eval.csv": 'fname,labels,mids\n100032,"Dog,Animal",/m/0bt9lr\n',
    "plain.txt": "100032\n\n",
}
YOUTUBE_FORMS = {
    "test.csv": "audiocap_id,youtube_id,start_time,caption\n7,-0_aB3xYz-_,30,A dog barks\n",
    "eval_segments.csv": (
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=1, num_segs=1\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '-0_aB3xYz-_, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
    ),
    "vggsound.csv": "aaaaaaaaaaa,1,dog barking,train\n-0_aB3xYz-_,30,people marching,test\n",
    "plain.txt": "-0_aB3xYz-_\n",
}


def row(source: str, id: str, seconds: float = 10.0) -> Row:
    return new_row(id, source, "noisy", "/a.wav", seconds)


@pytest.mark.parametrize("name", FREESOUND_FORMS)
def test_freesound_lists_of_the_datasets(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FREESOUND_FORMS[name], encoding="latin-1")
    ids = EvaluationIds()

    assert read_id_list(tmp_path / name, "freesound", ids) == 1
    where = ids.find(row("freesound", "100032"), NAMESPACES, windows=False)
    assert where is not None
    assert where.startswith(f"{name} line ")


@pytest.mark.parametrize("name", YOUTUBE_FORMS)
def test_youtube_lists_of_the_datasets(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(YOUTUBE_FORMS[name])
    ids = EvaluationIds()

    assert read_id_list(tmp_path / name, "youtube", ids) == 1
    assert ids.find(row("audioset", "Y-0_aB3xYz-_.wav"), NAMESPACES, windows=True)
    assert ids.find(row("acav", "-0_aB3xYz-__35"), NAMESPACES, windows=True)
    elsewhere = row("acav", "-0_aB3xYz-__40")
    assert ids.find(elsewhere, NAMESPACES, windows=False)
    assert bool(ids.find(elsewhere, NAMESPACES, windows=True)) == (name == "plain.txt")


def test_only_sources_of_the_namespace_match(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("12345678901\n")
    (tmp_path / "sounds.txt").write_text("123\n")
    ids = EvaluationIds()
    read_id_list(tmp_path / "ids.txt", "youtube", ids)
    read_id_list(tmp_path / "sounds.txt", "freesound", ids)

    assert ids.find(row("Freesound", "123"), NAMESPACES, windows=False)
    assert ids.find(row("audiocaps", "12345678901"), NAMESPACES, windows=False)
    assert not ids.find(row("audiocaps", "123"), NAMESPACES, windows=False)
    assert not ids.find(row("freesound", "12345678901"), NAMESPACES, windows=False)
    assert not ids.find(row("laion", "123"), NAMESPACES, windows=False)
    assert ids.find(row("laion", "123"), {"laion": "freesound"}, windows=False)


def test_wavcaps_blacklists(tmp_path: Path) -> None:
    path = tmp_path / "blacklist.json"
    path.write_text(json.dumps({"AudioSet": ["Y-0_aB3xYz-_.wav"], "FreeSound": [123, "456"], "BBC": ["NHU05"]}))
    ids = EvaluationIds()

    assert read_blacklist(path, ids) == 3
    assert ids.unknown == 1
    assert ids.find(row("wavcaps", "Y-0_aB3xYz-_.wav"), NAMESPACES, windows=False)
    assert ids.find(row("wavcaps", "456"), NAMESPACES, windows=False)
    assert not ids.find(row("wavcaps", "789"), NAMESPACES, windows=False)


def test_the_ids_of_an_evaluation_manifest_count(tmp_path: Path) -> None:
    ids = EvaluationIds()
    ids.add_rows("held out", [row("fsd50k", "123"), row("vggsound", "-0_aB3xYz-__000030"), row("x", "9")], NAMESPACES)

    assert ids.find(row("freesound", "123.wav"), NAMESPACES, windows=True) == "held out: fsd50k 123"
    assert ids.find(row("audiocaps", "-0_aB3xYz-__30"), NAMESPACES, windows=True)
    assert not ids.find(row("freesound", "9"), NAMESPACES, windows=True)


@pytest.mark.parametrize(
    ("content", "namespace", "message"),
    [
        (b"123\n../../etc/passwd\n", "freesound", "line 2.*a Freesound id"),
        (b"id,label\n123,dog\nabc,dog\n", "freesound", "line 3"),
        (b"123\n", "youtube", "line 1.*a YouTube id"),
        (b"youtube_id,start_time\n-0_aB3xYz-_,noon\n", "youtube", "line 2.*no time"),
        (b"-0_aB3xYz-_,dog\n", "youtube", "line 1.*no time"),
        (b"", "youtube", "holds no id"),
        (b"fname,labels\n", "freesound", "holds no id"),
        (b"RIFF\0\0", "freesound", "zero bytes"),
        (b'"' + b"a" * 200_000 + b'"\n', "freesound", "line 1.*field"),
    ],
)
def test_a_list_of_another_form_is_named_by_line(content: bytes, namespace: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(content)

    with pytest.raises(InputError, match=message):
        read_id_list(tmp_path / "list.csv", namespace, EvaluationIds())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "neither AudioSet nor FreeSound"),
        ('{"FreeSound": 3}', "is a int"),
        ('{"FreeSound": ["x/../y"]}', "FreeSound, entry 0"),
        ('{"AudioSet": [null]}', "AudioSet, entry 0"),
    ],
)
def test_a_blacklist_of_another_form_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "blacklist.json").write_text(content)

    with pytest.raises(InputError, match=message):
        read_blacklist(tmp_path / "blacklist.json", EvaluationIds())
