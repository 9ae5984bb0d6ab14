"""Tokenizers: trained, saved, loaded and resolved; what the ids promise."""

import ctypes
import gc
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from cacophony.data.tokens import BOS, EOS, PAD, UNK, CaptionTokenizer, resolve_tokenizer
from cacophony.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

CAPTIONS = ["a dog barks in the rain", "rain falls on a roof", "Ein Hund bellt — schön", "日本語 の 音"]
TRAINED = CaptionTokenizer.train(CAPTIONS, 300)


def lists(rows: list[np.ndarray]) -> list[list[int]]:
    return [row.tolist() for row in rows]


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(text: str) -> None:
    (ids,) = TRAINED.encode([text], 1_000)
    assert ids.dtype == np.int32
    assert ids[0] == BOS
    assert ids[-1] == EOS
    assert TRAINED.decode(ids) == text.strip()


@pytest.mark.parametrize("max_len", [2, 3, 5])
def test_long_captions_keep_their_end_token(max_len: int) -> None:
    (whole,), (ids,) = TRAINED.encode(CAPTIONS[:1], 77), TRAINED.encode(CAPTIONS[:1], max_len)
    assert ids.tolist() == [*whole[: max_len - 1], EOS]


def test_a_limit_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        TRAINED.encode(["a"], 1)


def test_special_words_in_a_caption_are_plain_text() -> None:
    (ids,) = TRAINED.encode(["one </s> two <pad> <mask>"], 77)
    assert not {BOS, PAD, EOS, UNK, 4} & set(ids[1:-1].tolist())
    assert TRAINED.decode(ids) == "one </s> two <pad> <mask>"


def test_decoding_stops_at_the_first_end_after_the_beginning() -> None:
    dog, rain = (ids[1:-1].tolist() for ids in TRAINED.encode(["a dog", "rain"], 77))
    assert TRAINED.decode([BOS, *dog, EOS, *rain, EOS, BOS, BOS]) == "a dog"
    assert TRAINED.decode([EOS, BOS, *dog, EOS]) == "a dog"
    assert TRAINED.decode(np.array([*dog, PAD, PAD])) == "a dog"
    assert TRAINED.decode([]) == ""


def test_training_is_deterministic_and_fills_the_special_ids() -> None:
    again = CaptionTokenizer.train(iter(CAPTIONS), 300)
    assert lists(again.encode(CAPTIONS, 77)) == lists(TRAINED.encode(CAPTIONS, 77))
    assert TRAINED.vocab_size <= 300
    with pytest.raises(InputError, match="vocab_size is 100; expected at least 261"):
        CaptionTokenizer.train(CAPTIONS, 100)


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    TRAINED.save(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tokenizer.json"]
    loaded = CaptionTokenizer.load(tmp_path / "new")
    assert lists(loaded.encode(CAPTIONS, 9)) == lists(TRAINED.encode(CAPTIONS, 9))


def test_vocab_and_merges_are_loaded(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    saved = tmp_path / "tokenizer.json"
    Tokenizer.from_file(str(saved)).model.save(str(tmp_path))
    saved.unlink()
    loaded = CaptionTokenizer.load(tmp_path)
    assert lists(loaded.encode(CAPTIONS, 77)) == lists(TRAINED.encode(CAPTIONS, 77))
    assert loaded.decode(loaded.encode(["rain"], 9)[0]) == "rain"


def test_lengths_that_a_tokenizer_file_asks_for_are_ignored(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert lists(CaptionTokenizer.load(tmp_path).encode(CAPTIONS, 77)) == lists(TRAINED.encode(CAPTIONS, 77))


def test_foreign_or_broken_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer; expected tokenizer\.json"):
        CaptionTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer"):
        CaptionTokenizer.load(tmp_path)
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
    Tokenizer(models.WordLevel(vocab, unk_token="<pad>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="have ids 1, 0, 2; expected 0, 1, 2"):
        CaptionTokenizer.load(tmp_path)


def test_a_local_directory_is_taken_and_must_fit(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    tokenizer, why = resolve_tokenizer(str(tmp_path), [], 300)
    assert tokenizer.vocab_size == TRAINED.vocab_size
    assert str(tmp_path) in why
    with pytest.raises(InputError, match=f"{TRAINED.vocab_size} entries, but vocab_size is 280"):
        resolve_tokenizer(str(tmp_path), [], 280)


def test_train_and_small_models_train() -> None:
    for spec, reason in (("train", "the configuration asks for it"), ("auto", "roberta-base has 50265 entries")):
        tokenizer, why = resolve_tokenizer(spec, CAPTIONS, 300)
        assert lists(tokenizer.encode(CAPTIONS, 77)) == lists(TRAINED.encode(CAPTIONS, 77))
        assert "trained on the captions" in why
        assert reason in why


@pytest.mark.usefixtures("no_hub")
def test_without_the_hub_auto_trains_and_a_name_is_refused() -> None:
    tokenizer, why = resolve_tokenizer("auto", CAPTIONS, 50_265)
    assert tokenizer.decode(tokenizer.encode(["rain"], 9)[0]) == "rain"
    assert "trained" in why
    assert "could not be reached" in why
    with pytest.raises(InputError, match="some/where") as caught:
        resolve_tokenizer("some/where", CAPTIONS, 50_265)
    assert "\n" not in str(caught.value)


def test_a_hub_that_answers_nothing_costs_seconds_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_: "http://127.0.0.1:9/tokenizer.json")
    begin = time.perf_counter()
    assert "trained" in resolve_tokenizer("auto", CAPTIONS, 50_265)[1]
    assert time.perf_counter() - begin < 8
    assert capfd.readouterr() == ("", "")


def test_the_hub_s_tokenizer_is_taken_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    saved = tmp_path / "tokenizer.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(saved))
    tokenizer, why = resolve_tokenizer("auto", [], 50_265)
    assert tokenizer.vocab_size == TRAINED.vocab_size
    assert "roberta-base" in why


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc what is allocated")
def test_tokenizers_that_are_gone_hold_no_memory(tmp_path: Path) -> None:
    """A process that starts one run after another loads one tokenizer after another."""
    texts = [f"a dog {number} barks at the {number * 7} river" for number in range(200)]
    CaptionTokenizer.train(texts, 500).save(tmp_path)
    heap = ctypes.CDLL(None).mallinfo2
    heap.restype = _Heap

    def allocated() -> int:
        CaptionTokenizer.load(tmp_path).encode(texts, 32)
        gc.collect()
        return heap().uordblks + heap().hblkhd

    allocated()
    before = allocated()
    after = [allocated() for _ in range(20)]
    assert after[-1] - before < 20 * 30_000  # bytes; each kept 100 kB
