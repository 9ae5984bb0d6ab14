"""The command `convert`: the authors' checkpoints to model directories, and back."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import rich.progress
import safetensors
import torch
import tyro
from rich.console import Console
from torch import Tensor

from ..data.tokens import CaptionTokenizer
from ..errors import InputError
from ..json_file import check_writable
from ..models.authors_tree import rules
from ..models.config import MAX_TEXT_TOKENS, AudioMAEConfig, AudioTextConfig, NetworkConfig, TransformerConfig
from ..models.convert import from_authors, infer_config, to_authors
from ..models.flax_file import Progress, read_tree, write_tree
from ..models.model_directory import MODEL_FILE, is_model_directory, read_config, write_model, write_processor
from ..models.tensor_shapes import check_tensors
from ..models.weights import load_tensors


def convert_command(
    source: tyro.conf.Positional[Path],
    /,
    *,
    out: Path,
    tokenizer: Path | None = None,
    text_heads: int | None = None,
    pool_heads: int | None = None,
    to_authors: bool = False,
) -> int:
    """Turn a checkpoint of the paper's authors into a model directory, or a model directory into such a checkpoint.

    Args:
        source: The authors' checkpoint (flax, msgpack): the file, or orbax's directory. With --to-authors a model
            directory: a run, or what this command wrote.
        out: Model directory to write; with --to-authors the file.
        tokenizer: Directory with the model's RoBERTa tokenizer; without it text goes in as token ids.
        text_heads: Heads of the text encoder, which a checkpoint does not tell; the paper's 12 unless given.
        pool_heads: Heads of the audio pooler, which a checkpoint does not tell; the paper's 8 unless given.
        to_authors: Write the authors' format (flax's legacy msgpack file) instead of reading it.
    """
    heads = {name: n for name, n in (("text_heads", text_heads), ("pool_heads", pool_heads)) if n is not None}
    if not to_authors:
        _convert_from_authors(source, out, tokenizer, heads)
    elif heads or tokenizer is not None:
        raise InputError("--tokenizer, --text-heads and --pool-heads do not go with --to-authors; leave them out")
    else:
        _convert_to_authors(source, out)
    return 0


def _convert_from_authors(source: Path, out: Path, tokenizer_directory: Path | None, heads: Mapping[str, int]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty; choose another --out")
    if is_model_directory(source):
        raise InputError(f"{source}: is a model directory already; --to-authors turns it into the authors' format")
    tokenizer = None if tokenizer_directory is None else CaptionTokenizer.load(tokenizer_directory)
    with _stages() as stage:
        tree = read_tree(source, stage("reading"))
        try:
            config = infer_config(tree, **heads)
            _check_text(config, tokenizer, heads)
            state = from_authors(tree, config, stage("converting"))
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        del tree  # the mapped file, or float32 copies of another dtype, would stay in memory while we write
        stage("writing")
        _write_directory(out, config, state, tokenizer)
    _report(out, config, state)
    if isinstance(config, AudioTextConfig):
        for flag, name in (("text_heads", "text encoder"), ("pool_heads", "pooler")):
            if flag not in heads:
                print(f"  {name}'s heads: as in the paper, a checkpoint does not tell (--{flag.replace('_', '-')})")
        if tokenizer is None:
            print("  no tokenizer: text goes in and captions come out as token ids (--tokenizer adds one)")


def _check_text(config: NetworkConfig, tokenizer: CaptionTokenizer | None, heads: Mapping[str, int]) -> None:
    if isinstance(config, AudioMAEConfig):
        if heads or tokenizer is not None:
            raise InputError("is an AudioMAE, without text; leave --tokenizer, --text-heads and --pool-heads out")
    elif tokenizer is not None and tokenizer.vocab_size > config.text.vocab_size:
        raise InputError(
            f"has {config.text.vocab_size} word embeddings, fewer than the tokenizer's {tokenizer.vocab_size} entries; "
            "take the tokenizer it was trained with"
        )


def _write_directory(
    out: Path, config: NetworkConfig, state: Mapping[str, Tensor], tokenizer: CaptionTokenizer | None
) -> None:
    """Write a model directory under a temporary name, then rename it."""
    final = out.resolve()
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_model(temporary, config, state)
        if tokenizer is not None and isinstance(config, AudioTextConfig):
            tokenizer.save(temporary)
            write_processor(temporary, min(MAX_TEXT_TOKENS, config.text.max_positions))
        temporary.replace(final)
    except safetensors.SafetensorError as error:
        raise InputError(f"{out}: could not be written ({error}); check the free space") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert_to_authors(source: Path, out: Path) -> None:
    if out.exists():
        raise InputError(f"{out}: exists already; choose another --out")
    check_writable(out)
    config, file = read_config(source), source / MODEL_FILE
    if isinstance(config, AudioTextConfig) and not config.caption_layers:
        raise InputError(
            f"{source}: has no caption decoder, which the authors' model has; expected a model that captions"
        )
    with _stages() as stage:
        stage("reading")
        state = load_tensors(file)
        _check_state(state, config, file)
        stage("converting")
        tree = to_authors(state, config)
        write_tree(out, tree, stage("writing"))
    _report(out, config, state)
    if isinstance(config, AudioTextConfig):
        print(
            f"  heads, which the file does not tell: --text-heads {config.text.heads} --pool-heads {config.pool_heads}"
        )


def _check_state(state: Mapping[str, Tensor], config: NetworkConfig, file: Path) -> None:
    expected = {name: shape for rule in rules(config) for name, shape in rule.ours}
    check_tensors({name: tuple(tensor.shape) for name, tensor in state.items()}, expected, file)
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise InputError(f"{file}: tensor {name} has dtype {tensor.dtype}, expected floating-point parameters")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{file}: tensor {name} holds NaN or infinity; take an earlier checkpoint")


def _report(out: Path, config: NetworkConfig, state: Mapping[str, Tensor]) -> None:
    """Print what was written: kind, number of parameters, sizes."""
    millions = sum(tensor.numel() for tensor in state.values()) / 1e6
    if isinstance(config, AudioMAEConfig):
        print(f"{out}: AudioMAE, {millions:.2f} M parameters")
        print(f"  encoder: {_sizes(config.encoder)}")
        print(f"  decoder: {_sizes(config.decoder)}")
        return
    text = config.text
    print(f"{out}: Cacophony, {millions:.2f} M parameters")
    print(f"  audio encoder: {_sizes(config.audio)}; pooled by {config.pool_heads} heads")
    print(f"  text encoder: {_sizes(text)}; {text.vocab_size} tokens, {text.max_positions} positions")
    print(f"  caption decoder: {config.caption_layers} layers; embeddings: {config.projection_width} features")


def _sizes(config: TransformerConfig) -> str:
    return f"{config.layers} layers of {config.width}, {config.heads} heads, feed-forward {config.mlp_width}"


@contextlib.contextmanager
def _stages() -> Iterator[Callable[[str], Progress]]:
    """Show a bar for each stage of the work, where stderr is a terminal, until all is done."""
    console = Console(stderr=True)
    with rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal) as bars:

        def stage(description: str) -> Progress:
            task = bars.add_task(description, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield stage
