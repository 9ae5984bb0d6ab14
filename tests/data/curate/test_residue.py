"""What is left in a caption that does not belong there."""

import pytest
from cacophony.data.curate.residue import FLAGS, residue
from hypothesis import given
from hypothesis import strategies as st

CLEAN = """
A dog barks in the distance.
Rain falls on a tin roof while thunder rumbles.
A drum machine plays at 128 BPM in C minor.
A fan hums with a 50 Hz buzz.
A French horn plays over an African drum.
La la la, a woman sings.
Bandoneon tango phrase.
A bus en route brakes with a hiss.
Someone orders a café au lait.
Christmas bells jingle.
A dog barks, a dog barks, then a cat meows.
A camera lens zooms with a whirr.
Knock knock knock on a door.
A man rode a horse.
A noise made by a duck.
A 50 cc motorcycle revs.
A din of traffic and horns.
Na na na, a child sings.
A TR-808 kick drum with a long decay.
A man takes 2 steps.
A father and his sons laugh.
Rain stops.It begins again.
Cable noise of an aux input.
Morse code beeps on an AM radio.
""".strip().splitlines()

FLAGGED = {
    "wind_03.wav": "file-name",
    "A door slams, see STE-012": "file-name",
    "ZOOM0004 a door": "file-name",
    "DR0000_0123 a car passes": "file-name",
    "A bell rings, www.example.org/bells": "url",
    "A bell rings (more at example.com)": "url",
    "A bell rings, write to a.b@example.org": "e-mail",
    "A bell rings on a Zoom H4n": "device",
    "A bell rings, Sony PCM-D50": "device",
    "Tascam DR-40 hiss": "device",
    "A bell through an AKG C414": "device",
    "A bell through a Røde NT1-A": "device",
    "A bell through a Rode NT1": "device",
    "A loop from FL Studio": "device",
    "Bells recorded in a church": "recording",
    "Bells, 24-bit": "recording",
    "Footsteps, take 2": "recording",
    "Bells at 5:30 pm": "date",
    "Bells on 12 May": "date",
    "Bells on 2012-05-14": "date",
    "Bells, summer of 1998": "date",
    "A man called Tom mows the lawn": "name",
    "Birds sing in Hyde Park": "name",
    "Un perro ladra a lo lejos": "language",
    "Regen auf dem Dach": "language",
    "Le bruit de la mer": "language",
    "Собака лает": "language",
    "犬が吠える": "language",
    "Bells ring, cloches dans la rue": "language",
    "rain rain rain rain rain": "repeats",
    "a dog barks and a dog barks and a dog barks and": "repeats",
    "Caption: a dog barks": "instruction",
    "Leave out names of people, places and dogs": "instruction",
    "As an AI I hear a dog": "instruction",
    "": "empty",
    " … ": "empty",
}


@pytest.mark.parametrize("text", CLEAN)
def test_a_caption_has_no_flag(text: str) -> None:
    assert residue(text) == []


@pytest.mark.parametrize(("text", "flag"), FLAGGED.items())
def test_residue_is_flagged(text: str, flag: str) -> None:
    assert flag in residue(text)


@given(st.sampled_from(CLEAN), st.sampled_from([text for text in FLAGGED if text.strip(" …")]))
def test_residue_is_found_beside_a_caption(caption: str, text: str) -> None:
    flags = set(residue(text))

    assert flags <= set(residue(f"{caption} {text}")) | {"name"}  # many capitals together tell nothing of names
    assert flags <= set(residue(f"{text}. {caption}")) | {"name", "repeats"}


@given(st.text(max_size=300))
def test_flags_are_sorted_known_and_the_same_again(text: str) -> None:
    flags = residue(text)

    assert flags == sorted(set(flags))
    assert set(flags) <= set(FLAGS)
    assert residue(text) == flags
    assert ("empty" in flags) == (not any(character.isalnum() for character in text))


@pytest.mark.parametrize("piece", ["a", "a_", "a.", "1:", "@", "A", "a-", "12 ", "x.y", "a@b", "a b ", "recorded "])
def test_a_megabyte_is_looked_at_in_no_time(piece: str) -> None:
    # Quadratic patterns would take minutes here.
    assert residue(piece * (1_000_000 // len(piece))) == residue(piece * (20_000 // len(piece)))
