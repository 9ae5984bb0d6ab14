"""Manifests of noisy clips, without audio: what labelling, learning and cleaning read."""

from pathlib import Path

from cacophony.data.curate.manifest import Manifest, Row, new_row, part_name, read_manifest, write_manifest, write_part

# Four descriptions of the kinds that Table I of the Cacophony paper shows, written for these tests: a device and a
# place, another language, names and thanks around the sound, a file name with settings; with a caption for each.
TABLE = {
    "Ambience at Lake Merritt, Oakland, early morning. Geese, joggers. Zoom H4n, 48kHz/24bit.": (
        "Geese honk and joggers run past by a lake."
    ),
    "Ruido de lluvia sobre un techo de chapa, con truenos lejanos": "Rain falls on a tin roof with distant thunder.",
    "My friend Jenny playing the cello in her room, thanks to her! Mail me at anna@example.org if you use it :)": (
        "A cello is played in a room."
    ),
    "door_slam_02.wav - heavy wooden door, 3 takes, recorded on 2012-05-14 with an AKG C414": (
        "A heavy wooden door slams."
    ),
}
NOUNS = ("dog", "train", "river", "violin", "engine", "crowd", "hammer", "owl", "kettle")
VERBS = ("barks", "passes", "roars", "plays", "starts", "cheers", "strikes")


def noisy_row(number: int) -> Row:
    """A noisy clip with text of its own."""
    row = new_row(str(number), "freesound", "noisy", f"/audio/{number}.wav", 3.0)
    noun, verb = NOUNS[number % len(NOUNS)], VERBS[number // len(NOUNS) % len(VERBS)]
    row["title"], row["tags"] = f"{noun}_{number}.wav", [noun, "field-recording"]
    row["texts"] = [f"A {noun} {verb}, take {number}. Recorded with a Zoom H4n."]
    return row


def write_noisy(folder: Path, rows: list[Row], rows_per_part: int = 10) -> Manifest:
    """A manifest of these rows."""
    folder.mkdir(parents=True)
    starts = range(0, len(rows), rows_per_part)
    for number, start in enumerate(starts):
        write_part(folder / part_name(number), rows[start : start + rows_per_part])
    write_manifest(folder, "made", {}, map(part_name, range(len(starts))))
    return read_manifest(folder)
