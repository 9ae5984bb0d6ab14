"""The demo: the whole main job on a small corpus of its own, in a few minutes on two cores."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.pack import pack
from ..data.synthetic import Corpus, make_corpus
from ..json_file import write_json
from .config import ContrastiveRunConfig, MaeRunConfig, Stage
from .embedding_figures import embedding_map, modality_gap
from .evaluate.datasets.packed import read_packed
from .evaluate.retrieval import evaluate_retrieval
from .evaluate.retrieval_metrics import format_table
from .inference import load
from .presets import demo_stage1, demo_stage2
from .reconstruction import draw_reconstruction
from .run_directory import check_new
from .trainer import train

TRAIN_CLIPS = 2000
TEST_CLIPS = 240
CAPTIONED_SOURCES = ("dog", "glass", "horn")  # a voice, something struck, something blown


def demo_command(*, out: Path = Path("cacophony-demo")) -> int:
    """Make a small corpus of sounds with captions, train both stages on it, evaluate retrieval, caption three clips.

    Args:
        out: Directory to write; must not exist or be empty.
    """
    check_new(out)
    started = time.perf_counter()
    corpus = _timed(
        "making sounds", lambda: make_corpus(out / "corpus", train_clips=TRAIN_CLIPS, test_clips=TEST_CLIPS)
    )
    for split, folder, captions in (
        ("train", corpus.train_dir, corpus.train_captions),
        ("test", corpus.test_dir, corpus.test_captions),
    ):
        _timed(f"packing {split}", lambda f=folder, c=captions, s=split: pack(f, out / f"{s}-shards", captions=c))
    _train("mae", demo_stage1(), out)
    _train("contrastive", demo_stage2(), out, init=out / "mae")
    _show(out, corpus)
    print(f"\ndone in {time.perf_counter() - started:.0f} s; everything is in {out}")
    return 0


def _train(stage: Stage, config: MaeRunConfig | ContrastiveRunConfig, out: Path, init: Path | None = None) -> None:
    shards, run = out / "train-shards", out / stage
    finished = _timed(f"training {stage}", lambda: train(stage, config, shards, run, init=init))
    if finished.stopped_by is not None:
        raise KeyboardInterrupt


def _show(out: Path, corpus: Corpus) -> None:
    model = load(out / "contrastive")
    result = evaluate_retrieval(model, read_packed(out / "test-shards"), progress=False)
    write_json(out / "retrieval.json", result.record())
    print(f"\nretrieval on {result.metrics['clips']} held-out clips, whose combinations were never trained on:")
    print(format_table(result.metrics))

    pictures = [out / "mae" / "loss.png", out / "contrastive" / "loss.png"]
    pictures += [out / "reconstruction.png", out / "embeddings.png"]
    draw_reconstruction(out / "mae", out / "test-shards", 0, pictures[2])
    names = [clip.name for clip in result.corpus.clips]
    labels = [corpus.attributes[name]["source"] for name in names]
    embedding_map(pictures[3], result.audio_embeddings, result.text_embeddings, labels)
    print(f"\nmodality gap {modality_gap(result.audio_embeddings, result.text_embeddings):.2f}")
    files = [
        next(name for name in names if corpus.attributes[name]["source"] == source) for source in CAPTIONED_SOURCES
    ]
    captions = model.caption([corpus.test_dir / file for file in files])
    print("\ncaptions of held-out clips:")
    for file, caption in zip(files, captions, strict=True):
        truth = corpus.attributes[file]
        print(f"  {file} ({', '.join(truth.values())}): {caption}")
    print("\npictures: " + ", ".join(map(str, pictures)))


def _timed(what: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = work()
    print(f"{what}: {time.perf_counter() - started:.0f} s", flush=True)
    return result
