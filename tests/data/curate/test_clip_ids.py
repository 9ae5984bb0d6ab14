"""Ids of Freesound and YouTube: every published form is read, nothing else is."""

import pytest
from cacophony.data.curate.clip_ids import (
    NAMESPACES,
    YouTubeId,
    freesound_id,
    ingested_sources,
    parse_namespaces,
    youtube_id,
)
from cacophony.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st

VIDEO = "-0_aB3xYz-_"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12345", "12345"),
        (" 0012345 ", "12345"),
        ("12345.wav", "12345"),
        ("audio/dev/12345.wav", "12345"),
        ("..\\..\\12345.wav", "12345"),
        ("12345__author__a dog.flac", "12345"),
        ("https://freesound.org/people/author/sounds/12345/", "12345"),
        ("https://freesound.org/s/12345", "12345"),
        ("0", None),
        ("", None),
        ("12a45", None),
        ("a dog 12345.wav", None),
        ("1234567890", None),
        ("https://example.org/sounds/12345/", None),
        (VIDEO, None),
    ],
)
def test_freesound(text: str, number: str | None) -> None:
    assert freesound_id(text) == number


@pytest.mark.parametrize(
    ("text", "clip"),
    [
        (VIDEO, YouTubeId(VIDEO)),
        (f"Y{VIDEO}.wav", YouTubeId(VIDEO)),
        (f"a/b/Y{VIDEO}_30.000_40.000.flac", YouTubeId(VIDEO, 30.0, 40.0)),
        (f"{VIDEO}_30", YouTubeId(VIDEO, 30.0)),
        (f"{VIDEO}_000030.mp4", YouTubeId(VIDEO, 30.0)),
        (f"{VIDEO}_30.000_40.000", YouTubeId(VIDEO, 30.0, 40.0)),
        ("Yabcdefghij", YouTubeId("Yabcdefghij")),
        ("YYabcdefghij_5", YouTubeId("Yabcdefghij", 5.0)),
        (f"https://www.youtube.com/watch?v={VIDEO}&t=30", YouTubeId(VIDEO)),
        (f"https://youtu.be/{VIDEO}", YouTubeId(VIDEO)),
        ("abcdefghij", None),
        ("abcdefghijkl", None),
        (f"{VIDEO}_1_2_3", None),
        ("../../etc/passwd", None),
        ("", None),
    ],
)
def test_youtube(text: str, clip: YouTubeId | None) -> None:
    assert youtube_id(text) == clip


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_any_text_gives_an_id_in_normal_form_or_none(text: str) -> None:
    clip, number = youtube_id(text), freesound_id(text)

    assert clip is None or youtube_id(clip.video) == YouTubeId(clip.video)
    assert number is None or freesound_id(number) == number


def test_a_source_of_another_name_has_the_ids_of_its_layout() -> None:
    listed = [("unbalanced", "ids"), ("scrape", "freesound"), ("bbc", "wavcaps"), ("speech", "laion"), ("acav", "ids")]
    sources = [{"name": name, "layout": layout} for name, layout in listed]
    ingested = {"stage": "ingest", "settings": {"source": {"stage": "list", "settings": {"sources": sources}}}}
    mixed = {"stage": "mix", "settings": {"sources": [ingested, {"settings": {"source": ingested}}, 3]}}

    assert ingested_sources(mixed) == dict(listed)
    namespaces = parse_namespaces(["scrape=none"], ingested_sources(mixed))
    found = [namespaces.get(name, "none") for name, _ in listed]
    assert found == ["youtube", "none", "both", "none", "youtube"]
    assert ingested_sources({"settings": [1]}) == {}


def test_namespaces_of_the_user_are_over_the_known_ones() -> None:
    namespaces = parse_namespaces(["wavcaps=none", "My=Own=youtube"])

    assert namespaces["wavcaps"] == "none"
    assert namespaces["my=own"] == "youtube"
    assert namespaces["freesound"] == NAMESPACES["freesound"] == "freesound"
    for wrong in ("laion", "laion=", "=youtube", "laion=vimeo"):
        with pytest.raises(InputError, match="expected source=namespace"):
            parse_namespaces([wrong])
