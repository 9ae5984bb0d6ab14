"""`cacophony curate exclude`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from ...data.curate.actors import ActorFlags, Actors
from ...data.curate.audio_features import Passes
from ...data.curate.clip_ids import ingested_sources, parse_namespaces
from ...data.curate.evaluation_clips import EvaluationParts, failures, list_clips, manifest_rows
from ...data.curate.exclude import Thresholds, exclude
from ...data.curate.id_lists import EvaluationIds, read_blacklist, read_id_list
from ...data.curate.manifest import read_manifest
from ...errors import InputError
from ...models.config import AudioTextConfig
from ...models.model_directory import read_config
from ..evaluate.store import checkpoint_digest
from .embedder import make_embedder
from .exclude_report import write_report


def exclude_command(
    manifest: tyro.conf.Positional[Path],
    /,
    *,
    out: Path,
    evaluation: tuple[Path, ...] = (),
    freesound_ids: tuple[Path, ...] = (),
    youtube_ids: tuple[Path, ...] = (),
    blacklists: tuple[Path, ...] = (),
    namespaces: tuple[str, ...] = (),
    windows: bool = False,
    pcm: bool = True,
    fingerprint: bool = True,
    model: Path | None = None,
    thresholds: Annotated[Thresholds, tyro.conf.arg(name="")] = Thresholds(),  # noqa: B008 - frozen
    report: Path | None = None,
    cache: Path | None = None,
    device: str = "auto",
    actors: ActorFlags = Actors(),  # noqa: B008 - frozen
) -> int:
    """Mark the clips of a manifest that are also in an evaluation set: by id, samples, fingerprint and embedding.

    Interrupted or killed, the same command continues.

    Args:
        manifest: Directory with a manifest.
        out: Directory of the manifest to write.
        evaluation: Evaluation sets: folders with audio, searched recursively, or manifests, whose ids count too.
        freesound_ids: Lists of Freesound ids: esc50.csv, UrbanSound8K.csv, Clotho's or FSD50K's csv, or an id a line.
        youtube_ids: Lists of YouTube ids: csv of AudioCaps, AudioSet or VGGSound (its test split), or an id a line.
        blacklists: WavCaps' blacklists (json).
        namespaces: Whose ids a source of the manifest has, as source=freesound, youtube, both or none. Known are
            audiocaps, audioset, acav, vggsound, freesound, fsd50k and wavcaps; others have those of their layout.
        windows: Match a YouTube id only where the listed part of the video and that of the clip overlap.
        pcm: Compare hashes of the samples.
        fingerprint: Compare fingerprints, which outlive another rate, level or codec.
        model: Stage-2 run, or a converted checkpoint; compares embeddings with it.
        thresholds: From where on two clips are the same.
        report: Directory for pairs.csv, scores.png and summary.json; OUT-report by default.
        cache: Directory for what is computed of the evaluation sets, to be used again; in the report's by default.
        device: Of the model: cpu, cuda, …; auto takes a GPU where there is one.
        actors: Where it works.
    """
    source = read_manifest(manifest)
    layouts = ingested_sources(source.provenance)
    names = parse_namespaces(namespaces, layouts)
    ids = EvaluationIds()
    for path in freesound_ids:
        print(f"{path}: {read_id_list(path, 'freesound', ids)} Freesound ids")
    for path in youtube_ids:
        print(f"{path}: {read_id_list(path, 'youtube', ids)} YouTube ids")
    for path in blacklists:
        print(f"{path}: {read_blacklist(path, ids)} ids")
    if ids.unknown:
        print(f"{ids.unknown} ids of other collections in the blacklists are not matched")
    for name, rows in manifest_rows(evaluation):
        ids.add_rows(name, rows, names)
    if (ids.freesound or ids.youtube) and (unknown := [name for name in layouts if names.get(name, "none") == "none"]):
        print(f"ids of {', '.join(unknown)} are compared with no list; --namespaces says whose they are")
    passes = _passes(evaluation, pcm=pcm, fingerprint=fingerprint, model=model, device=device)
    if not passes.any and not ids.freesound and not ids.youtube:
        raise InputError("nothing to compare with; name evaluation sets with --evaluation, or lists of ids")
    report = report or out.with_name(f"{out.name}-report")
    digest = checkpoint_digest(model) if model else ""
    clips = list_clips(evaluation) if passes.any else []
    parts = EvaluationParts(clips, cache or report / "evaluation", passes, digest)
    result = exclude(
        source, out, ids=ids, parts=parts, namespaces=names, windows=windows, thresholds=thresholds, actors=actors
    )
    print("\n".join(write_report(result, report, thresholds, failures(parts))))
    return 0


def _passes(evaluation: tuple[Path, ...], *, pcm: bool, fingerprint: bool, model: Path | None, device: str) -> Passes:
    if model is not None and not isinstance(read_config(model), AudioTextConfig):
        raise InputError(f"{model}: holds a stage-1 model; expected stage 2 (cacophony train contrastive)")
    if not evaluation:
        if model is not None:
            raise InputError("--model compares audio with that of evaluation sets; name them with --evaluation")
        return Passes(pcm=False, fingerprint=False, make_embedder=None)
    return Passes(pcm, fingerprint, None if model is None else partial(make_embedder, model.resolve(), device))
