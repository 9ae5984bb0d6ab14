"""The commands of `cacophony evaluate` on the paper's retrieval, zero-shot and captioning datasets."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from ...errors import InputError
from ...json_file import check_writable, write_json
from ..embedding_figures import confusion_matrix
from ..inference import BATCH_SIZE, Method, load
from .caption_metrics import check_installed, format_caption_metrics
from .caption_tokens import Tokenization
from .captioning import evaluate_captioning
from .datasets.layouts import CaptionDataset, LabelDataset, read_captioned, read_labelled
from .embedding import Decoding
from .everything import JSON_NAME, TABLE_NAME, evaluate_all
from .report import corpus_line
from .retrieval import evaluate_retrieval
from .retrieval_metrics import format_table
from .store import Store
from .zero_shot import evaluate_zero_shot
from .zero_shot_metrics import format_zero_shot

Run = tyro.conf.Positional[Path]
JsonFile = Annotated[Path | None, tyro.conf.arg(name="json")]


def retrieval_command(
    run: Run,
    /,
    *,
    data: Path,
    dataset: CaptionDataset = "auto",
    json_file: JsonFile = None,
    cache: Path | None = None,
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
) -> int:
    """Rank clips for captions and captions for clips: R@1/5/10 and mAP@10 in both directions.

    Args:
        run: Stage-2 run, or a converted checkpoint.
        data: Dataset directory: AudioCaps, Clotho, or shards that `cacophony pack --captions` wrote.
        dataset: Layout of the directory; auto looks at what it holds.
        json_file: File to write the same figures to as JSON.
        cache: Directory to keep embeddings in and take them from.
        batch_size: Most clips through the model at once; of long ones fewer are.
        device: cpu, cuda, …; auto takes a GPU where there is one.
    """
    _check_outputs(json_file)
    model = load(run, device=device, batch_size=batch_size)
    corpus = read_captioned(data, dataset)
    result = evaluate_retrieval(model, corpus, store=Store.of_model(cache, run), progress=sys.stderr.isatty())
    print(corpus_line(corpus))
    print(format_table(result.metrics))
    if json_file is not None:
        write_json(json_file, result.record())
    return 0


def zero_shot_command(
    run: Run,
    /,
    *,
    data: Path,
    dataset: LabelDataset = "auto",
    template: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    confusion: Path | None = None,
    json_file: JsonFile = None,
    cache: Path | None = None,
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
) -> int:
    """Classify clips by the nearest class text: top-1 and top-5, a row per class.

    Args:
        run: Stage-2 run, or a converted checkpoint.
        data: Dataset directory: ESC-50, UrbanSound8K, TUT Acoustic Scenes 2017 or VGGSound.
        dataset: Layout of the directory; auto looks at what it holds.
        template: Sentence with {} for the class instead of the paper's; given several times, their embeddings are
            averaged.
        confusion: PNG file to draw the confusion matrix to.
        json_file: File to write the same figures to as JSON.
        cache: Directory to keep embeddings in and take them from.
        batch_size: Most clips through the model at once; of long ones fewer are.
        device: cpu, cuda, …; auto takes a GPU where there is one.
    """
    _check_outputs(json_file, confusion)
    model = load(run, device=device, batch_size=batch_size)
    corpus = read_labelled(data, dataset)
    store = Store.of_model(cache, run)
    result = evaluate_zero_shot(model, corpus, templates=template, store=store, progress=sys.stderr.isatty())
    print(corpus_line(corpus))
    print(f"templates: {' | '.join(result.templates)}")
    print(format_zero_shot(result.metrics))
    if confusion is not None:
        title = f"{corpus.dataset}, top-1 {result.metrics['top_1']:.1%}"
        confusion_matrix(confusion, result.metrics["confusion"], corpus.classes, title)
    if json_file is not None:
        write_json(json_file, result.record())
    return 0


def caption_evaluation_command(
    run: Run,
    /,
    *,
    data: Path,
    dataset: CaptionDataset = "auto",
    method: Method = "sample",
    temperature: float = 0.1,
    beams: int = 3,
    seed: int = 0,
    tokenizer: Tokenization | None = None,
    json_file: JsonFile = None,
    cache: Path | None = None,
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
) -> int:
    """Caption clips and score the captions: BLEU, ROUGE-L, CIDEr; METEOR, SPICE and SPIDEr where Java is.

    Args:
        run: Stage-2 run, or a converted checkpoint.
        data: Dataset directory: AudioCaps, Clotho, or shards that `cacophony pack --captions` wrote.
        dataset: Layout of the directory; auto looks at what it holds.
        method: Draw from softmax(logits / temperature), take the likeliest token, or search with several beams.
        temperature: Of sampling.
        beams: Hypotheses kept by beam search.
        seed: Of sampling.
        tokenizer: What splits captions into words: the PTB tokenizer, a Java program, or rules like its. Left out, the
            PTB tokenizer is taken where Java is.
        json_file: File to write the figures and all captions to as JSON.
        cache: Directory to keep captions in and take them from.
        batch_size: Most clips through the model at once; of long ones fewer are.
        device: cpu, cuda, …; auto takes a GPU where there is one.
    """
    _check_outputs(json_file)
    check_installed(tokenizer)
    model = load(run, device=device, batch_size=batch_size)
    corpus = read_captioned(data, dataset)
    result = evaluate_captioning(
        model,
        corpus,
        Decoding(method, temperature, beams, seed),
        tokenization=tokenizer,
        store=Store.of_model(cache, run),
        progress=sys.stderr.isatty(),
    )
    print(corpus_line(corpus))
    print(format_caption_metrics(result.metrics))
    if json_file is not None:
        write_json(json_file, result.record())
    return 0


def all_evaluations_command(
    run: Run, /, *, data_root: Path, out: Path | None = None, batch_size: int = BATCH_SIZE, device: str = "auto"
) -> int:
    """Run every evaluation whose dataset is there, and write one JSON, one Markdown table and the pictures.

    Embeddings and captions are kept: called again, it goes on where it was.

    Args:
        run: Stage-2 run, or a converted checkpoint.
        data_root: Directory with the datasets, each in its authors' layout, at most four folders deep.
        out: Directory to write; RUN/evaluation where left out.
        batch_size: Most clips through the model at once; of long ones fewer are.
        device: cpu, cuda, …; auto takes a GPU where there is one.
    """
    out = run / "evaluation" if out is None else out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; expected a directory to write, name another --out")
    model = load(run, device=device, batch_size=batch_size)
    evaluation = evaluate_all(model, run, data_root, out, progress=sys.stderr.isatty())
    for title, outcome in evaluation.outcomes.items():
        figures = ", ".join(f"{name} {value:.3f}" for name, (value, _) in outcome.figures.items())
        print(f"{title}\n  {outcome.corpus}\n  {figures}")
    for title, reason in evaluation.not_run.items():
        print(f"{title}\n  not run: {reason}")
    print(f"written to {out / TABLE_NAME} and {out / JSON_NAME}")
    return 0


def _check_outputs(*files: Path | None) -> None:
    for file in files:
        if file is not None:
            check_writable(file)
