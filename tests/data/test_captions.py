"""The captions file: what is read, and how a malformed one is refused."""

import unicodedata
from pathlib import Path

import pytest
from cacophony.data.captions import leaves_folder, normal_name, read_captions
from cacophony.errors import InputError
from hypothesis import given
from hypothesis import strategies as st


def table(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "captions.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_rows_are_read_with_or_without_a_byte_order_mark(tmp_path: Path, mark: bytes, newline: str) -> None:
    lines = ["file,caption,synthetic", 'a.wav,"rain, then Donner",', "a.wav, a dog ,TRUE", "", "b.wav,,0", ""]
    read = read_captions(table(tmp_path, mark + newline.join(lines).encode()))
    rows = [(row.file, row.caption, row.synthetic) for row in read.rows]
    assert rows == [("a.wav", "rain, then Donner", False), ("a.wav", "a dog", True), ("b.wav", "", False)]
    assert [row.line for row in read.rows] == [2, 3, 5]


@pytest.mark.parametrize(("word", "flag"), [("true", True), ("1", True), ("Yes", True), ("no", False), ("0", False)])
def test_synthetic_words(tmp_path: Path, word: str, flag: bool) -> None:
    assert read_captions(table(tmp_path, f"synthetic,file,caption\n{word},a,b\n")).rows[0].synthetic is flag


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name,caption\na,b\n", ["missing column file", "found name, caption"]),
        ("file;caption\na;b\n", ["missing column file, caption", "found file;caption"]),
        ("", ["missing column", "found none"]),
        ("file,caption,caption\n", ["caption occurs twice"]),
        ("file,caption,synthetic\na,b,\nc,d,maybe\n", ["line 3", "'maybe'", "true, false"]),
        ("file,caption\na.wav,rain, wind\n", ["line 2", "3 fields, expected 2", "quotes"]),
        ('file,caption\na.wav,"rain\nb.wav,wind\n', ["line 3", "unexpected end"]),
        ('file,caption\na.wav,"rain" falls\n', ["line 2", "expected after"]),
        ("file,caption\n,rain\n", ["line 2", "file column is empty"]),
        ("file,caption\na.wav," + "x" * 200_000 + "\n", ["line 2", "field larger"]),
        ("file,caption\nä,b\n".encode("latin-1"), ["not UTF-8", "save the file as UTF-8"]),
        ("file,caption\nä,b\n".encode("utf-16"), ["not UTF-8"]),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, text: str | bytes, parts: list[str]) -> None:
    path = table(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_captions(path)
    assert "\n" not in str(caught.value)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_a_missing_captions_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        read_captions(tmp_path / "nowhere.csv")


def test_names_match_under_any_unicode_form_and_separator(tmp_path: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "Öl/é.wav"), unicodedata.normalize("NFD", "Öl/é.wav")
    text = f"file,caption\n{composed},a\n{decomposed},b\n./{composed},c\nÖl\\é.wav,d\nelse.wav,e\n"
    rows = read_captions(table(tmp_path, text))
    for on_disk in (composed, decomposed):
        groups = rows.by_file([on_disk, "other.wav"])
        assert [row.caption for row in groups[on_disk]] == ["a", "b", "c", "d"]
        assert [row.caption for row in groups["else.wav"]] == ["e"]


def test_an_exact_name_wins_over_an_equivalent_one(tmp_path: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    rows = read_captions(table(tmp_path, f"file,caption\n{composed},a\n{decomposed},b\n"))
    groups = rows.by_file([composed, decomposed])
    assert {name: [row.caption for row in group] for name, group in groups.items()} == {
        composed: ["a"],
        decomposed: ["b"],
    }


@pytest.mark.parametrize("name", ["../a.wav", "a/../../b.wav", "/etc/a.wav", "C:\\a.wav", "..\\a.wav", "\\a.wav"])
def test_paths_out_of_the_folder_are_seen(name: str) -> None:
    assert leaves_folder(name)


@pytest.mark.parametrize("name", ["a.wav", "a/b..wav", "..a/b.wav", "a b/c.wav"])
def test_paths_in_the_folder_are_allowed(name: str) -> None:
    assert not leaves_folder(name)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_the_normal_name_is_a_fixed_point(name: str) -> None:
    assert normal_name(normal_name(name)) == normal_name(name)
