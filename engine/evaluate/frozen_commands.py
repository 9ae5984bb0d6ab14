"""The commands of `cacophony evaluate` that look at frozen embeddings: questions, HEAR tasks, the modality gap."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from ...errors import InputError
from ...json_file import check_writable, write_json
from ..distributed import choose_device
from ..embedding_figures import embedding_map, gap_curves
from ..inference import load
from ..projection import PROJECTIONS, Projection, require_umap
from .aqa import PROBE, evaluate_aqa, format_aqa
from .aqa_layouts import Agreement, Dataset, read_questions
from .datasets.layouts import CaptionDataset, read_captioned
from .gap import Gap, evaluate_gap
from .hear import load_model
from .hear_probe import PROBES, evaluate_hear, format_hear
from .hear_task import read_task

JsonFile = Annotated[Path | None, tyro.conf.arg(name="json")]


def aqa_command(
    run: tyro.conf.Positional[Path],
    /,
    *,
    data: Path,
    dataset: Dataset,
    agreement: Agreement = "all",
    seed: int = 0,
    json_file: JsonFile = None,
    device: str = "auto",
) -> int:
    """Answer questions about audio with a four-layer classifier on the frozen embeddings of clip and question.

    Args:
        run: Stage-2 run, or a converted checkpoint.
        data: Directory of the dataset, as its authors distribute it.
        dataset: clotho-aqa, or music-aqa (the audio questions of MUSIC-AVQA).
        agreement: Of a question's several answers: all by themselves, the majority's, or only those all agree on.
        seed: Of the classifier's weights, order and dropout.
        json_file: File to write the figures to as JSON.
        device: cpu, cuda, …; auto takes a GPU where there is one.
    """
    if json_file is not None:
        check_writable(json_file)
    questions = read_questions(data, dataset, agreement)
    model = load(run, device=device)
    result = evaluate_aqa(model, questions, probe=replace(PROBE, seed=seed), progress=sys.stderr.isatty())
    result |= {"agreement": agreement}
    print(format_aqa(result))
    if json_file is not None:
        write_json(json_file, result)
    return 0


def hear_command(
    run: tyro.conf.Positional[Path],
    /,
    *,
    task_dir: Path,
    fixed_seconds: float | None = None,
    seed: int = 0,
    json_file: JsonFile = None,
    device: str = "auto",
) -> int:
    """Probe the frozen audio encoder on a task that HEAR's preprocessing made: scenes, or events in time.

    Args:
        run: Run of either stage, or a converted checkpoint.
        task_dir: The task's directory: task_metadata.json, labelvocabulary.csv, a .json for each split, and audio.
        fixed_seconds: Make every sound exactly this long, by cutting or by silence; left out, each is seen whole.
        seed: Of the probes' weights, order and dropout.
        json_file: File to write the figures to as JSON.
        device: cpu, cuda, …; auto takes a GPU where there is one.
    """
    if json_file is not None:
        check_writable(json_file)
    task = read_task(task_dir)
    model = load_model(run, fixed_seconds=fixed_seconds).to(choose_device(device))
    probes = [replace(probe, seed=seed) for probe in PROBES]
    result = evaluate_hear(model, task, probes=probes, progress=sys.stderr.isatty())
    print(format_hear(result))
    if json_file is not None:
        write_json(json_file, result)
    return 0


def gap_command(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    data: Path,
    out: Path,
    dataset: CaptionDataset = "auto",
    projection: Projection = "umap",
    device: str = "auto",
) -> int:
    """Measure the modality gap over the checkpoints of runs: gap.json, gap.png, and a map of each run's last one.

    Args:
        runs: Stage-2 runs; train with --keep-checkpoints as large as the steps to look at.
        data: Dataset directory: AudioCaps, Clotho, or shards that `cacophony pack --captions` wrote.
        out: Directory to write.
        dataset: Layout of the directory; auto looks at what it holds.
        projection: How the map lays embeddings on a plane: umap (umap-learn has to be installed), or pca.
        device: cpu, cuda, …; auto takes a GPU where there is one.
    """
    if not runs:
        raise InputError("no run was named; expected at least one")
    if projection == "umap":
        require_umap()
    corpus = read_captioned(data, dataset)
    out.mkdir(parents=True, exist_ok=True)
    record = []
    curves: dict[str, list[tuple[float, float]]] = {}
    for number, run in enumerate(runs, start=1):
        points: list[tuple[float, float]] = []
        last: Gap | None = None
        for step, last in evaluate_gap(run, corpus, device=device, progress=sys.stderr.isatty()):
            points.append((step, last.gap))
            print(f"{run}: step {step}, gap {last.gap:.4f}")
        assert last is not None
        picture = f"embeddings-{number}.png"
        embedding_map(out / picture, last.audio_embeddings, last.paired_text, None, PROJECTIONS[projection])
        curves[str(run)] = points
        record.append(
            {
                "run": str(run),
                "checkpoints": [{"step": step, "gap": gap} for step, gap in points],
                "clips": len(last.audio_embeddings),
                "captions": len(last.text_embeddings),
                "map": picture,
            }
        )
    gap_curves(out / "gap.png", curves, "Modality gap")
    write_json(out / "gap.json", {"runs": record, "projection": projection})
    print(f"{out}: gap.json, gap.png and a map ({projection}) of each run's last checkpoint")
    return 0
