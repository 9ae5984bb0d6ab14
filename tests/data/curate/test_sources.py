"""Sources that a TOML file names: as the flags would make them, and a wrong one is told with its number."""

from pathlib import Path

import pytest
from cacophony.data.curate.sources.source import make_source, read_sources
from cacophony.errors import InputError


def test_sources_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sources.toml"
    path.write_text(
        '[[source]]\nlayout = "ids"\nmetadata = "l/acav 1.csv"\naudio = "/a"\n'
        '[[source]]\nlayout = "clotho"\naudio = "c"\nsplit = "validation"\nname = "clotho-val"\nkind = "unlabeled"\n'
    )

    assert read_sources(path) == [
        make_source("ids", Path("/a"), tmp_path / "l" / "acav 1.csv", name="acav-1", kind="unlabeled"),
        make_source("clotho", tmp_path / "c", name="clotho-val", kind="unlabeled", split="validation"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[source]", "cannot be read as TOML"),
        ("a = 1", "expected one or more"),
        ('[[source]]\naudio = "a"', "source 1: layout is missing"),
        ('[[source]]\nlayout = "x"\naudio = "a"', "source 1: source layout is 'x'"),
        ('[[source]]\nlayout = "laion"\naudio = "a"\nnmae = "b"', "source 1: nmae is wrong"),
        ('[[source]]\nlayout = "laion"\naudio = "a"\nname = "../b"', "source name is '../b'"),
        ('[[source]]\nlayout = "laion"\naudio = "a"\nkind = "dirty"', "kind is 'dirty'"),
        ('[[source]]\nlayout = "laion"\naudio = "a"\nencoding = "utf7"', "encoding is 'utf7'"),
        ('[[source]]\nlayout = "clotho"\naudio = "a"\nsplit = "../x"', "split is '../x'"),
        ('[[source]]\nlayout = "ids"\naudio = "a"', "name its metadata"),
        ('[[source]]\nlayout = "laion"\naudio = "a"\nmetadata = "b"', "leave out metadata"),
    ],
)
def test_a_wrong_file_of_sources_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sources.toml"
    path.write_text(text)

    with pytest.raises(InputError, match=message):
        read_sources(path)
