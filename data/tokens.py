"""Captions to token ids and back: byte-level BPE with RoBERTa's special tokens, loaded or trained here."""

import functools
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ..errors import InputError

BOS = 0
PAD = 1
EOS = 2
UNK = 3

TOKENIZER_FILE = "tokenizer.json"

_SPECIAL = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK}
_MASK_TOKEN = "<mask>"
_MIN_VOCAB = len(_SPECIAL) + 1 + 256
_HUB_DEFAULT = "roberta-base"
_HUB_DEFAULT_VOCAB = 50_265
_HUB_SECONDS = 3.0


class CaptionTokenizer:
    """A byte-level BPE tokenizer whose ids 0 to 3 are `<s>`, `<pad>`, `</s>` and `<unk>`."""

    def __init__(self, backend: Tokenizer, origin: str = "tokenizer") -> None:
        found = {name: backend.token_to_id(name) for name in ("<s>", "<pad>", "</s>")}
        if any(found[name] != _SPECIAL[name] for name in found):
            raise InputError(
                f"{origin}: <s>, <pad>, </s> have ids {', '.join(str(i) for i in found.values())}; expected 0, 1, 2: "
                "take a tokenizer of the RoBERTa family"
            )
        # Whatever the file asks for, lengths are decided in `encode`.
        backend.no_truncation()
        backend.no_padding()
        self._backend = _shared(backend.to_str())

    @property
    def vocab_size(self) -> int:
        """Number of entries, special tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str], max_len: int) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
        """Token ids `<s> … </s>` of each text, int32 `[t]`, 2 <= t <= `max_len`; a long text loses its end, not `</s>`.

        Raises `ValueError` for a `max_len` below 2.
        """
        if max_len < 2:
            raise ValueError(f"max_len must be at least 2 (<s> and </s>), got {max_len}")
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [np.array([BOS, *encoding.ids[: max_len - 2], EOS], np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text between the first `<s>` (the beginning where there is none) and the next `</s>`, stripped."""
        row = [int(i) for i in ids]
        if BOS in row:
            row = row[row.index(BOS) + 1 :]
        if EOS in row:
            row = row[: row.index(EOS)]
        return self._backend.decode(row, skip_special_tokens=True).strip()

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` into `directory` (made where missing); a reader sees the old file or the new one."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tokenizer-") as scratch:
            unfinished = Path(scratch) / TOKENIZER_FILE
            unfinished.write_text(self._backend.to_str(), encoding="utf-8")
            unfinished.replace(folder / TOKENIZER_FILE)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "CaptionTokenizer":
        """Read a local directory with `tokenizer.json`, or with `vocab.json` and `merges.txt`.

        Raises `InputError` when the files are missing or malformed, or the special ids are not RoBERTa's.
        """
        folder = Path(directory)
        whole, vocab, merges = folder / TOKENIZER_FILE, folder / "vocab.json", folder / "merges.txt"
        try:
            if whole.is_file():
                return cls(Tokenizer.from_file(str(whole)), str(whole))
            if vocab.is_file() and merges.is_file():
                return cls(_roberta(models.BPE.from_file(str(vocab), str(merges))), str(vocab))
        except InputError:
            raise
        except Exception as error:  # the library raises bare Exception for malformed files
            raise InputError(
                f"{folder}: not a tokenizer the tokenizers library can read ({_one_line(error)})"
            ) from error
        raise InputError(f"{folder}: no tokenizer; expected tokenizer.json, or vocab.json and merges.txt")

    @classmethod
    def from_hub(cls, name: str) -> "CaptionTokenizer":
        """The tokenizer of a Hugging Face repository, from the local cache or the network.

        Raises `InputError` when the hub cannot be reached within seconds or has no such tokenizer.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cached = huggingface_hub.try_to_load_from_cache(name, TOKENIZER_FILE)
                if isinstance(cached, str):
                    return cls(Tokenizer.from_file(cached), f"tokenizer {name}")
                # A download retries for half a minute and logs each failure; this asks once.
                url = huggingface_hub.hf_hub_url(name, TOKENIZER_FILE)
                huggingface_hub.get_hf_file_metadata(url, timeout=_HUB_SECONDS)
                backend = Tokenizer.from_pretrained(name)
        except InputError:
            raise
        except Exception as error:  # whatever goes wrong on a network
            raise InputError(
                f"tokenizer {name}: not a local directory, and not to be had from the Hugging Face hub "
                f"({_one_line(error)}); give a directory with tokenizer.json, or train"
            ) from error
        return cls(backend, f"tokenizer {name}")

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "CaptionTokenizer":
        """Byte-level BPE learnt from captions, at most `vocab_size` entries; the same captions give the same tokenizer.

        Raises `InputError` when `vocab_size` leaves no room for the 256 bytes and 5 special tokens.
        """
        if vocab_size < _MIN_VOCAB:
            raise InputError(f"vocab_size is {vocab_size}; expected at least {_MIN_VOCAB}: raise vocab_size")
        backend = _roberta(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            special_tokens=[*_SPECIAL, _MASK_TOKEN],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        backend.train_from_iterator(captions, trainer)
        return cls(backend)


def resolve_tokenizer(spec: str, captions: Iterable[str], vocab_size: int) -> tuple[CaptionTokenizer, str]:
    """The tokenizer that `spec` names, and one sentence that says what was taken and why.

    `spec` is "train" (learnt from `captions`), "auto" (the hub's roberta-base; one trained here where the hub cannot be
    reached or `vocab_size` is too small for it), a local directory, or a repository of the hub. Raises `InputError`
    when it cannot be had, its special ids are not RoBERTa's, or it has more than `vocab_size` entries.
    """
    if spec == "train":
        reason = "the configuration asks for it"
    elif spec == "auto":
        if vocab_size >= _HUB_DEFAULT_VOCAB:
            try:
                tokenizer = CaptionTokenizer.from_hub(_HUB_DEFAULT)
                return tokenizer, f"tokenizer: {_HUB_DEFAULT} of the Hugging Face hub ({tokenizer.vocab_size} entries)."
            except InputError:
                reason = f"the Hugging Face hub's {_HUB_DEFAULT} could not be reached"
        else:
            reason = f"{_HUB_DEFAULT} has {_HUB_DEFAULT_VOCAB} entries and the model has room for {vocab_size}"
    else:
        local = Path(spec).is_dir()
        tokenizer = CaptionTokenizer.load(spec) if local else CaptionTokenizer.from_hub(spec)
        _check_fit(tokenizer, spec, vocab_size)
        place = "the local directory" if local else "the Hugging Face repository"
        return tokenizer, f"tokenizer: {place} {spec} ({tokenizer.vocab_size} entries), as configured."
    tokenizer = CaptionTokenizer.train(captions, vocab_size)
    return tokenizer, f"tokenizer: trained on the captions ({tokenizer.vocab_size} entries), because {reason}."


@functools.lru_cache(maxsize=8)
def _shared(description: str) -> Tokenizer:
    """One tokenizer for all that are alike: the library keeps what each has looked up in memory when that is gone."""
    backend = Tokenizer.from_str(description)
    backend.encode_special_tokens = True  # "</s>" inside a caption is plain text
    return backend


def _roberta(model: models.BPE) -> Tokenizer:
    model.unk_token = "<unk>"
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", EOS), ("<s>", BOS), trim_offsets=True, add_prefix_space=False
    )
    # In a model read from files they are ordinary entries: decoding must know that they are not text.
    present = [name for name in (*_SPECIAL, _MASK_TOKEN) if backend.token_to_id(name) is not None]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in present])
    return backend


def _check_fit(tokenizer: CaptionTokenizer, name: str, vocab_size: int) -> None:
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"tokenizer {name}: {tokenizer.vocab_size} entries, but vocab_size is {vocab_size}; "
            "raise vocab_size or take a smaller tokenizer"
        )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
