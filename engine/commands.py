"""The commands about runs: train, embed, caption, doctor. A command's arguments are its flags."""

import argparse
import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from ..data.audio import printable
from ..data.dali_decoder import choose_decoder
from ..data.flac import flac_decoder
from ..errors import InputError
from ..json_file import check_writable
from ..kernels import backend
from ..kernels.attention_providers.choice import report
from ..kernels.linear_choice import linear_report
from ..kernels.native import native_library
from ..models.config_io import merge, read_toml
from .config import RUN_CONFIGS, ContrastiveRunConfig, MaeRunConfig, Stage
from .flags import parse_flags
from .inference import Cacophony, Method, load
from .limits import PART_SECONDS, describe, measure_limits
from .presets import preset as preset_named
from .run_directory import is_run, read_record
from .trainer import train

INTERRUPTED = 130  # the exit code shells give to Ctrl-C
NOT_SAVED = 3  # the exit code of a run that went on though a checkpoint could not be written
_DEFAULT_PRESETS: dict[Stage, str] = {"mae": "paper_stage1", "contrastive": "paper_stage2"}


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Train one stage on packed shards; every field of the configuration is a flag."""

    data: Path
    """Directory written by `cacophony pack`."""
    out: Path
    """Run directory to write."""
    preset: str
    """Named configuration to start from."""
    config: Path | None = None
    """TOML file with fields that replace the preset's."""
    init: Path | None = None
    """Model directory whose weights start this run: a stage-1 run or a converted AudioMAE (stage 2 takes its audio
    encoder), or a model of the same stage."""
    resume: bool = False
    """Continue the run in --out; where there is none, start it."""
    limits: bool = False
    """Train and write nothing: measure for about a minute what limits the run, and say what to change."""
    allow_changed: bool = False
    """Continue it though the configuration is another; what changed is said."""


@dataclass(frozen=True, kw_only=True)
class TrainMae(TrainArguments):
    """Stage 1: train the audio masked autoencoder on packed shards."""

    run: Annotated[MaeRunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class TrainContrastive(TrainArguments):
    """Stage 2: train the audio-text model (contrastive + captioning) on packed shards."""

    run: Annotated[ContrastiveRunConfig, tyro.conf.arg(name="")]


_ARGUMENTS: dict[Stage, type[TrainMae] | type[TrainContrastive]] = {"mae": TrainMae, "contrastive": TrainContrastive}


def train_arguments(stage: Stage, argv: Sequence[str]) -> TrainMae | TrainContrastive:
    """Parse the flags of `cacophony train STAGE`: preset, then TOML file, then flags, each over the one before.

    A run that is continued starts from its own configuration instead of the preset.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default=None)
    early.add_argument("--config", type=Path)
    early.add_argument("--out", type=Path)
    early.add_argument("--resume", action="store_true")
    known, _ = early.parse_known_args(argv)
    name = known.preset or _DEFAULT_PRESETS[stage]
    defaults: Any = preset_named(stage, name)
    if known.resume and known.out is not None and is_run(known.out):
        record = read_record(known.out)
        if isinstance(record.config, RUN_CONFIGS[stage]):
            defaults = record.config
    if known.config is not None:
        defaults = merge(defaults, read_toml(known.config), str(known.config))
    arguments = _ARGUMENTS[stage]
    return parse_flags(
        arguments,
        f"cacophony train {stage}",
        argv,
        default=arguments(
            data=tyro.MISSING,
            out=tyro.MISSING,
            preset=name,
            config=None,
            init=None,
            resume=False,
            limits=False,
            allow_changed=False,
            run=defaults,
        ),
    )


def train_command(stage: Stage, argv: Sequence[str]) -> int:
    """Run `cacophony train STAGE`; returns the exit code."""
    arguments = train_arguments(stage, argv)
    if arguments.limits:
        found = measure_limits(stage, arguments.run, arguments.data, part_seconds=PART_SECONDS)
        if found is not None:
            print(describe(found, arguments.run))
        return 0
    finished = train(
        stage,
        arguments.run,
        arguments.data,
        arguments.out,
        init=arguments.init,
        resume=arguments.resume,
        allow_changed=arguments.allow_changed,
    )
    code = INTERRUPTED if finished.stopped_by is signal.SIGINT else 0
    if finished.is_main:
        if finished.failed_saves:
            print(f"cacophony: {'; '.join(finished.failed_saves)}", file=sys.stderr)
        if finished.stopped_by is not None:
            print(f"stopped by {finished.stopped_by.name} after step {finished.steps}; continue with --resume")
        else:
            print(f"{arguments.out}: {finished.steps} steps done")
    return NOT_SAVED if finished.failed_saves else code


def embed_command(
    run: tyro.conf.Positional[Path],
    files: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    out: Path,
    device: str = "auto",
) -> int:
    """Embed audio files: an .npz with `audio` (float32, one unit vector a row) and `names`.

    Args:
        run: Stage-2 run, or a converted checkpoint.
        files: Audio files, any rate and number of channels.
        out: File to write.
        device: cpu, cuda, …; auto takes a GPU where there is one.
    """
    check_files(files)
    check_writable(out)
    model = load(run, device=device)
    embeddings = model.embed_audio(files)
    temporary = out.with_name(f".{out.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, audio=embeddings, names=np.array([str(name) for name in files]))
    temporary.replace(out)
    print(f"{out}: {len(files)} embeddings of {embeddings.shape[1]} features")
    return 0


def caption_command(
    run: tyro.conf.Positional[Path],
    files: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    method: Method = "sample",
    temperature: float = 0.1,
    beams: int = 3,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Caption audio files, one line each.

    Args:
        run: Stage-2 run, or a converted checkpoint.
        files: Audio files, any rate and number of channels.
        method: Draw from softmax(logits / temperature), take the likeliest token, or search with several beams.
        temperature: Of sampling.
        beams: Hypotheses kept by beam search.
        seed: Of sampling.
        device: cpu, cuda, …; auto takes a GPU where there is one.
    """
    check_files(files)
    model: Cacophony = load(run, device=device)
    captions = model.caption(files, method=method, temperature=temperature, beams=beams, seed=seed)
    for file, text in zip(files, captions, strict=True):
        print(printable(f"{file}: {text}"))
    return 0


def doctor_command() -> int:
    """Say what this machine and installation can do: versions, devices, optional packages, each op's path and why."""
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} CPU cores")
    devices = [torch.device("cpu")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        devices.append(torch.device("cuda", index))
    if len(devices) == 1:
        print("no CUDA device")
    for package, purpose in (
        ("triton", "fused kernels"),
        ("flash-attn", "extra flash"),
        ("xformers", "extra xformers"),
        ("nvidia-dali-cuda130", "extra dali"),
        ("mteb", "extra evaluate"),
        ("sed-eval", "extra evaluate"),
        ("umap-learn", "extra evaluate"),
        ("pytest-benchmark", "extra bench"),
        ("pycocoevalcap", "extra evaluate"),
        ("wandb", "extra wandb"),
        ("ray", "extra curate"),
        ("pyarrow", "extra curate"),
        ("faiss-cpu", "extra curate"),
        ("openai", "extra curate"),
        ("rouge-score", "extra curate"),
    ):
        print(f"{package} ({purpose}): {_version(package)}")
    for kind in ("cpu", "cuda"):
        library = native_library(kind)
        print(f"native library for {kind}: {'none, ' if library.handle is None else ''}{library.about}")
    print(flac_decoder())
    for device in devices:
        print(choose_decoder("auto", device.type, threads=1)[1])
        print(f"ops on {device} (backend {backend.current_backend()}):")
        for choice in backend.choices(device):
            print(f"  {choice.op:18} {choice.path:10} {choice.reason}")
        print(f"attention on {device}:")
        for line in report(device):
            print(f"  {line}")
        print(f"linear layers on {device}:")
        for line in linear_report(device):
            print(f"  {line}")
    return 0


def check_files(files: Sequence[Path]) -> None:
    """Raise InputError where ``files`` is empty or names a file that is not there."""
    if not files:
        raise InputError("no audio file was named; expected at least one after the run directory")
    for file in files:
        if file.is_dir():
            raise InputError(f"{file}: is a folder; name the files in it, as {file / '*.wav'}")
        if not file.is_file():
            raise InputError(f"{file}: no such file; expected an audio file")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
