"""`cacophony curate caption`."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...data.curate.actors import ActorFlags, Actors
from ...data.curate.caption import caption
from ...data.curate.captioner import Captioner
from ...data.curate.manifest import Kind, read_manifest
from ...data.shard_writer import sha256_of
from ...errors import InputError
from ...json_file import read_json
from ...models.config import AudioTextConfig
from ...models.model_directory import CONFIG_FILE, MODEL_TYPES, is_model_directory, read_config
from ..evaluate.store import checkpoint_digest
from .model_captioner import CaptionDecoding, make_model_captioner


def curate_caption_command(
    manifest: tyro.conf.Positional[Path],
    /,
    *,
    out: Path,
    model: str,
    kinds: tuple[Kind, ...] = ("unlabeled",),
    captions: int = 1,
    decoding: Annotated[CaptionDecoding, tyro.conf.arg(name="")] = CaptionDecoding(),  # noqa: B008 - frozen
    seed: int = 0,
    prompt: str = "",
    max_tokens: int = 100,
    batch_size: int = 16,
    device: str = "auto",
    actors: ActorFlags = Actors(),  # noqa: B008 - frozen
) -> int:
    """Caption the clips of a manifest with a model, into `synthetic_text`.

    Interrupted or killed, the same command continues.

    Args:
        manifest: Directory with a manifest.
        out: Directory of the manifest to write.
        model: Stage-2 run or converted checkpoint of this project; or name or path of a transformers model that turns
            audio into text.
        kinds: Of the clips that get captions: clean, noisy, unlabeled.
        captions: For each clip, drawn one by one; equal ones are kept once.
        decoding: How captions are generated.
        seed: Of sampling; what is drawn for a clip depends on this, its source and its id.
        prompt: Of a transformers model: how the text begins (`clotho > caption: `), or what a chat model is asked.
        max_tokens: Of a caption by a transformers model.
        batch_size: Clips that the model sees at once, at most.
        device: cpu, cuda, …; auto takes a GPU where there is one.
        actors: Where it works.
    """
    source = read_manifest(manifest)
    if captions > 1 and decoding.method != "sample":
        raise InputError(f"method {decoding.method} gives the same caption {captions} times; sample, or ask for one")
    if batch_size < 1 or max_tokens < 1:
        raise InputError(f"batch-size is {batch_size} and max-tokens {max_tokens}; expected at least 1 of each")
    make, identity = _captioner(model, decoding, prompt, max_tokens, device, batch_size)
    result = caption(
        source,
        out,
        make_captioner=make,
        model=identity | vars(decoding),
        kinds=kinds,
        captions=captions,
        seed=seed,
        actors=actors,
    )
    print(f"{result.rows} clips in {out}")
    for reason, count in result.counts.items():
        print(f"  {reason}: {count}")
    return 0


def _captioner(
    model: str, decoding: CaptionDecoding, prompt: str, max_tokens: int, device: str, batch_size: int
) -> tuple[Callable[[], Captioner], dict[str, Any]]:
    """What makes the captioner, and what identifies it in the settings of a stage."""
    path = Path(model)
    if _is_ours(path):
        if not isinstance(read_config(path), AudioTextConfig):
            raise InputError(f"{path}: holds a stage-1 model; expected stage 2 (cacophony train contrastive)")
        if prompt:
            raise InputError(f"--prompt is for transformers models; {path} is one of this project, which takes none")
        make = partial(make_model_captioner, path.resolve(), decoding, device, batch_size)
        return make, {"model": checkpoint_digest(path)}
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; expected a model directory, or the name of a transformers model")
    # Imported here: transformers takes as long as all else that a command imports, and only this one needs it.
    from .transformers_captioner import make_transformers_captioner

    name, files = (str(path.resolve()), _digest(path)) if path.is_dir() else (model, "")
    make = partial(make_transformers_captioner, name, decoding, prompt, max_tokens, device, batch_size)
    return make, {"model": name, "files": files, "prompt": prompt, "max_tokens": max_tokens}


def _digest(directory: Path) -> str:
    """SHA-256 over the settings and weights of a model of transformers, hexadecimal."""
    files = sorted(path for path in directory.iterdir() if path.suffix in (".json", ".safetensors"))
    return hashlib.sha256("".join(f"{path.name} {sha256_of(path)}\n" for path in files).encode()).hexdigest()


def _is_ours(path: Path) -> bool:
    return is_model_directory(path) and read_json(path / CONFIG_FILE).get("model_type") in MODEL_TYPES
