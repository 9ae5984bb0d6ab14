"""The front door: composes the commands of engine, data and bench; `cacophony …`, `python -m cacophony …`."""

import difflib
import io
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any

# Read when torch loads OpenMP. Threads that wait for each other spin for long by default, which makes small steps many
# times slower when another process wants a core; after a short spin they sleep.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Where a rank is gone, torch warns of every socket with pages of C++; our own line names the rank.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch

from .bench.commands import (
    all_command,
    blocks_command,
    compile_command,
    embedding_command,
    kernels_command,
    packing_command,
    report_command,
    steps_command,
)
from .bench.data_command import data_command
from .bench.profile_command import profile_command
from .bench.soak_command import soak_command
from .bench.update_command import update_command
from .data.commands import check_command, merge_command, pack_command
from .data.curate.clean_command import clean_command
from .data.curate.ingest_command import ingest_command
from .data.curate.label_command import label_command
from .engine.commands import (
    INTERRUPTED,
    caption_command,
    doctor_command,
    embed_command,
    train_command,
)
from .engine.convert_command import convert_command
from .engine.curation.caption_command import curate_caption_command
from .engine.curation.exclude_command import exclude_command
from .engine.curation.finetune_command import finetune_command
from .engine.curation.mix_command import mix_command
from .engine.demo import demo_command
from .engine.evaluate.commands import (
    all_evaluations_command,
    caption_evaluation_command,
    retrieval_command,
    zero_shot_command,
)
from .engine.evaluate.frozen_commands import aqa_command, gap_command, hear_command
from .engine.flags import command
from .engine.full_memory import in_short
from .engine.parity_command import parity_command
from .engine.plan_command import plan_command
from .engine.shards_stats_command import shards_stats_command
from .errors import InputError, RunError

Command = Callable[[Sequence[str]], int]

READER_GONE = 128 + 13
"""Exit code as of a program that SIGPIPE ends."""

_COMMANDS: dict[str, tuple[str, Command]] = {
    "demo": (
        "make a small corpus, train both stages on it, evaluate, caption",
        command(demo_command, "cacophony demo"),
    ),
    "pack": ("turn a folder of audio and captions into shards", command(pack_command, "cacophony pack")),
    "shards check": ("decode and verify packed shards", command(check_command, "cacophony shards check")),
    "shards stats": (
        "hours, lengths and tokens of packed shards",
        command(shards_stats_command, "cacophony shards stats"),
    ),
    "shards merge": ("join packed directories into one", command(merge_command, "cacophony shards merge")),
    "curate ingest": (
        "collect published collections in one manifest",
        command(ingest_command, "cacophony curate ingest"),
    ),
    "curate label": (
        "captions of a sample of noisy descriptions, from a language model",
        command(label_command, "cacophony curate label"),
    ),
    "curate finetune": (
        "a cleaner, trained on such captions",
        command(finetune_command, "cacophony curate finetune"),
    ),
    "curate clean": (
        "captions of every noisy description, from a cleaner",
        command(clean_command, "cacophony curate clean"),
    ),
    "curate caption": (
        "caption the clips of a manifest with a model",
        command(curate_caption_command, "cacophony curate caption"),
    ),
    "curate exclude": (
        "mark clips of a manifest that are in an evaluation set",
        command(exclude_command, "cacophony curate exclude"),
    ),
    "curate mix": (
        "choose what is trained on, with a card of it",
        command(mix_command, "cacophony curate mix"),
    ),
    "train mae": ("stage 1: the audio masked autoencoder", lambda argv: train_command("mae", argv)),
    "train contrastive": ("stage 2: contrastive + captioning", lambda argv: train_command("contrastive", argv)),
    "evaluate retrieval": (
        "audio-text retrieval of a run",
        command(retrieval_command, "cacophony evaluate retrieval"),
    ),
    "evaluate aqa": ("questions about audio", command(aqa_command, "cacophony evaluate aqa")),
    "evaluate hear": ("a HEAR task on frozen embeddings", command(hear_command, "cacophony evaluate hear")),
    "evaluate gap": ("modality gap over a run's checkpoints", command(gap_command, "cacophony evaluate gap")),
    "evaluate zero-shot": (
        "zero-shot classification of a run",
        command(zero_shot_command, "cacophony evaluate zero-shot"),
    ),
    "evaluate caption": (
        "captioning metrics of a run",
        command(caption_evaluation_command, "cacophony evaluate caption"),
    ),
    "evaluate all": (
        "every evaluation whose dataset is there",
        command(all_evaluations_command, "cacophony evaluate all"),
    ),
    "embed": ("embeddings of audio files", command(embed_command, "cacophony embed")),
    "caption": ("captions of audio files", command(caption_command, "cacophony caption")),
    "plan": ("memory, FLOPs and time of a run on GPUs you need not have", command(plan_command, "cacophony plan")),
    "parity": ("compare ops and a model's step with the truth", command(parity_command, "cacophony parity")),
    "convert": (
        "the authors' checkpoint to a model directory, or back",
        command(convert_command, "cacophony convert"),
    ),
    "bench kernels": ("time of every op against its rivals", command(kernels_command, "cacophony bench kernels")),
    "bench all": ("tests, ops and steps on a GPU, in ten minutes", command(all_command, "cacophony bench all")),
    "bench report": ("table and picture of a bench", command(report_command, "cacophony bench report")),
    "bench blocks": (
        "time of a transformer block and of a stack, by hand against PyTorch's",
        command(blocks_command, "cacophony bench blocks"),
    ),
    "bench steps": ("time of a step of both stages", command(steps_command, "cacophony bench steps")),
    "bench update": (
        "time of stage 2's whole update, SAM included",
        command(update_command, "cacophony bench update"),
    ),
    "bench data": (
        "how fast clips are loaded, and how many cores feed a GPU",
        command(data_command, "cacophony bench data"),
    ),
    "bench soak": (
        "whether a process that trains for an hour keeps its size",
        command(soak_command, "cacophony bench soak"),
    ),
    "bench packing": (
        "what padding costs: both towers, packed against padded",
        command(packing_command, "cacophony bench packing"),
    ),
    "bench embedding": (
        "what batching by length gains when clips are embedded",
        command(embedding_command, "cacophony bench embedding"),
    ),
    "bench compile": (
        "registers, spills and tensor cores of every kernel, without a GPU",
        command(compile_command, "cacophony bench compile"),
    ),
    "profile": (
        "where a step's time goes, plain PyTorch against the fused path",
        command(profile_command, "cacophony profile"),
    ),
    "doctor": ("what this machine and installation can do", command(doctor_command, "cacophony doctor")),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0, 1 (the run failed), 2 (the input was wrong), 3 (the run went on, but a checkpoint could not be written), 130
    (Ctrl-C), 141 (what reads the output, `head` say, has enough).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A caption or file name must not crash a terminal that is not UTF-8.
            stream.reconfigure(errors="replace")
    try:
        if not words or words[0] in ("-h", "--help"):
            return _help()
        run, rest = _find(words)
        code = run(rest)
        sys.stdout.flush()
        return code
    except InputError as error:
        return _complain(error, 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return READER_GONE
        return _complain(f"{error}; check the path, its permissions and the free space", 2)
    except RunError as error:
        return _complain(error, 1)
    except torch.OutOfMemoryError as error:
        advice = "see with nvidia-smi that no other process holds memory there, or give --device cpu"
        return _complain(f"{in_short(error)}; {advice}", 1)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _find(words: list[str]) -> tuple[Command, list[str]]:
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in _COMMANDS:
            return _COMMANDS[name][1], words[count:]
    group = [name.split()[1] for name in _COMMANDS if name.split()[0] == words[0] and " " in name]
    if group:
        raise InputError(f"`cacophony {words[0]}` needs one of: {', '.join(group)}")
    nearest = difflib.get_close_matches(words[0], [name.split()[0] for name in _COMMANDS], n=1, cutoff=0.0)[0]
    raise InputError(f"command {words[0]!r} is unknown; did you mean {nearest}? (`cacophony --help` lists all)")


def _help() -> int:
    print("usage: cacophony COMMAND ...    (`cacophony COMMAND --help` explains one)\n")
    for name, (summary, _) in _COMMANDS.items():
        print(f"  {name:20} {summary}")
    return 0


def _reader_is_gone() -> bool:
    """Whether nobody reads stdout any more; what is left of the output goes nowhere then, and is no error at exit."""
    stdout = select.poll()
    stdout.register(sys.stdout, 0)
    if not stdout.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _complain(message: Any, code: int) -> int:
    print(f"cacophony: {' '.join(str(message).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
