"""What an evaluation has computed, kept on disk under what it was computed from: tensors and JSON, never a pickle."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch

from ...data.tokens import TOKENIZER_FILE
from ...errors import InputError
from ...json_file import read_json, write_json
from ...models.model_directory import CONFIG_FILE, MODEL_FILE
from ...models.weights import load_tensors, save_tensors

_BLOCK_BYTES = 1 << 22


class Store:
    """Arrays and texts of one checkpoint. Without a directory nothing is kept."""

    def __init__(self, directory: Path | None = None, checkpoint: str = "") -> None:
        """Keep results in ``directory`` (made where missing) for the model with the digest ``checkpoint``."""
        self._directory = directory
        self.checkpoint = checkpoint
        """Digest of the model whose results these are."""

    @classmethod
    def of_model(cls, directory: Path | None, model_directory: Path) -> "Store":
        """Return the store in ``directory`` for the weights, sizes and tokenizer in ``model_directory``."""
        return cls(directory, "" if directory is None else checkpoint_digest(model_directory))

    def of_weights(self, model_directory: Path, weights: Path) -> "Store":
        """Return the store in the same directory for the model with other ``weights``, such as a checkpoint's."""
        return Store(self._directory, "" if self._directory is None else checkpoint_digest(model_directory, weights))

    def array(self, kind: str, made_from: Sequence[str], compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the float32 array kept under ``kind`` and ``made_from``, or compute and keep it.

        Raises InputError where the kept file is damaged.
        """
        path = self._path(kind, made_from, ".safetensors")
        if path is None:
            return compute()
        if path.is_file():
            return load_tensors(path)["values"].numpy()
        values = compute()
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            save_tensors({"values": torch.from_numpy(np.ascontiguousarray(values, np.float32))}, temporary)
        except safetensors.SafetensorError as error:
            raise InputError(f"{path}: could not be written ({error}); free some space") from None
        temporary.replace(path)
        return values

    def texts(self, kind: str, made_from: Sequence[str], compute: Callable[[], list[str]]) -> list[str]:
        """Return the texts kept under ``kind`` and ``made_from``, or compute and keep them.

        Raises InputError where the kept file is damaged.
        """
        path = self._path(kind, made_from, ".json")
        if path is None:
            return compute()
        if path.is_file():
            texts = read_json(path).get("texts")
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise InputError(f"{path}: holds no list of texts; delete it, it will be computed again")
            return texts
        texts = compute()
        write_json(path, {"texts": texts})
        return texts

    def record(self, kind: str, made_from: Sequence[str], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the JSON object kept under ``kind`` and ``made_from``, or compute and keep it.

        Raises InputError where the kept file is damaged.
        """
        path = self._path(kind, made_from, ".json")
        if path is None:
            return compute()
        if not path.is_file():
            write_json(path, compute())
        return read_json(path)

    def has(self, kind: str, made_from: Sequence[str], suffix: str) -> bool:
        """Whether something is kept there; ``suffix`` is `.safetensors` for an array, `.json` for texts."""
        path = self._path(kind, made_from, suffix)
        return path is not None and path.is_file()

    def _path(self, kind: str, made_from: Sequence[str], suffix: str) -> Path | None:
        if self._directory is None:
            return None
        self._directory.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(json.dumps([self.checkpoint, kind, *made_from]).encode()).hexdigest()
        return self._directory / f"{kind}-{key[:32]}{suffix}"


def checkpoint_digest(model_directory: Path, weights: Path | None = None) -> str:
    """SHA-256 over a model directory's weights (or those in ``weights``), sizes and tokenizer, hexadecimal."""
    digest = hashlib.sha256()
    for name in (MODEL_FILE, CONFIG_FILE, TOKENIZER_FILE):
        path = weights if weights is not None and name == MODEL_FILE else model_directory / name
        digest.update(f"{name} {path.is_file()}\n".encode())
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
    return digest.hexdigest()
