"""Figures that the authors publish for their checkpoint, to stand beside those of a run.

All are from ``src/eval/README.md`` of github.com/gzhu06/Cacophony at commit 9e5cfce, as shares in [0, 1]: their JAX
checkpoint of stage 2, run by their evaluation code (Clotho: the row "Updated"). Figures of the paper that are not on
that page are not here. Nor is Vocal Imitation of HEAR: the page calls all of HEAR's figures accuracies, and that task
is scored by mAP first.
"""

from collections.abc import Mapping

SOURCE = "github.com/gzhu06/Cacophony, src/eval/README.md (JAX checkpoint of stage 2)"


def _retrieval(text_to_audio: tuple[float, ...], audio_to_text: tuple[float, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for direction, shares in (("text to audio", text_to_audio), ("audio to text", audio_to_text)):
        found |= {f"{direction} r@{top}": share for top, share in zip((1, 5, 10), shares, strict=True)}
    return found


_FIGURES: dict[tuple[str, str], Mapping[str, float]] = {
    ("retrieval", "audiocaps"): _retrieval((0.410, 0.753, 0.864), (0.553, 0.836, 0.924)),
    ("retrieval", "clotho"): _retrieval((0.200, 0.463, 0.582), (0.261, 0.533, 0.661)),
    ("zero-shot", "esc50"): {"top_1": 0.934},
    ("zero-shot", "urbansound8k"): {"top_1": 0.771},
    ("zero-shot", "tut2017"): {"top_1": 0.486},
    ("zero-shot", "vggsound"): {"top_1": 0.271},
}

_HEAR = {
    "esc50-v2.0.0-full": 0.970,
    "libricount-v1.0.0-hear2021-full": 0.660,
    "tfds_crema_d-1.0.0-full": 0.593,
    "gunshot_triangulation-v1.0-full": 0.833,
    "speech_commands-v0.0.2-5h": 0.680,
    "speech_commands-v0.0.2-full": 0.762,
    "vox_lingua_top10-hear2021-full": 0.262,
    "nsynth_pitch-v2.2.3-5h": 0.420,
    "nsynth_pitch-v2.2.3-50h": 0.726,
    "tfds_gtzan-1.0.0-full": 0.850,
    "tfds_gtzan_music_speech-1.0.0-full": 0.985,
    "beijing_opera-v1.0-hear2021-full": 0.970,
}
"""Directory of the task, as HEAR's preprocessing names it → accuracy."""


def published(task: str, dataset: str) -> Mapping[str, float]:
    """Return the authors' figures of a task of `evaluate all` on a dataset, by the name of the figure; often none."""
    return _FIGURES.get((task, dataset), {})


def published_hear_accuracy(directory_name: str) -> float | None:
    """Return the authors' accuracy on the HEAR task in a directory of that name; None where they give none."""
    return _HEAR.get(directory_name)
