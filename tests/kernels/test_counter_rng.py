"""The counter-based generator: exact words, a bijection with good avalanche, streams that look independent."""

import itertools
from typing import Any

import pytest
import torch
from cacophony.kernels.counter_rng import (
    device_fold,
    device_random_bits,
    fold,
    hash32,
    host_key,
    random_bits,
    root_key,
)
from cacophony.kernels.triton_runtime import HAS_TRITON, jit, launch, tl
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

WORD = 2**32 - 1
WORDS = st.integers(0, WORD)
INT64 = st.integers(-(2**63), 2**63 - 1)
CPU = torch.device("cpu")


def hash_of(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def unhash(x: int) -> int:
    """The inverse of lowbias32: odd multipliers and xor-shifts can be undone."""
    x ^= x >> 16
    x = (x * pow(0x846CA68B, -1, 2**32)) & WORD
    x ^= (x >> 15) ^ (x >> 30)
    x = (x * pow(0x7FEB352D, -1, 2**32)) & WORD
    return x ^ (x >> 16)


def fold_of(key: int, value: int) -> int:
    return hash_of((hash_of(key ^ hash_of(value & WORD)) + 0x9E3779B9 + ((value >> 32) & WORD)) & WORD)


def bits_of(word: Tensor) -> Tensor:
    return (word[..., None] >> torch.arange(32)) & 1


@given(WORDS)
def test_hash32_is_exact_and_can_be_inverted(word: int) -> None:
    hashed = int(hash32(torch.tensor(word)))
    assert hashed == hash_of(word)
    assert unhash(hashed) == word


def test_hash32_never_collides_on_a_range() -> None:
    assert len(hash32(torch.arange(2**18)).unique()) == 2**18


@given(WORDS, INT64)
def test_fold_and_random_bits_equal_python_integers(key: int, value: int) -> None:
    assert int(fold(torch.tensor(key), value)) == fold_of(key, value)
    expected = hash_of(hash_of((value * 0x9E3779B9 + key) & WORD) ^ key)
    assert int(random_bits(torch.tensor(key), torch.tensor(value))) == expected


class Uploads(TorchFunctionMode):
    """Collects calls that copy numbers of the host into a tensor: where it lies on a device, the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            self.calls.append(func)
        return func(*args, **(kwargs or {}))


def test_keys_of_integers_are_made_without_waiting_for_a_device() -> None:
    with Uploads() as uploads:
        key = fold(root_key(2**40 + 3, 7, torch.device("meta")), 5)
    assert key.device.type == "meta"
    assert not uploads.calls


@jit
def words_kernel(key, value, folded, bits, root, host_key, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    words, values = tl.load(key + i).to(tl.uint32), tl.load(value + i)
    tl.store(folded + i, device_fold(words, values).to(tl.int64))
    tl.store(bits + i, device_random_bits(words, values).to(tl.int64))
    tl.store(root + i, tl.zeros((BLOCK,), tl.int64) + host_key.to(tl.uint32).to(tl.int64))


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (1, 7), (2**63 - 1, 2**31), (-5, 16)])
def test_kernels_draw_the_same_words(seed: int, step: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    key = torch.randint(2**32, (256,), device=device)
    value = torch.randint(-(2**63), 2**63 - 1, (256,), device=device)
    value[:4] = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    folded, bits, root = (torch.empty_like(key) for _ in range(3))
    launch(words_kernel, (1,), key, value, folded, bits, root, host_key(seed, step), BLOCK=256)
    assert torch.equal(folded, fold(key, value))
    assert torch.equal(bits, random_bits(key, value))
    assert torch.equal(root, root_key(seed, step, device).expand_as(root))


def test_known_values() -> None:
    """Masks of a run depend on these words: a change here changes every resumed run."""
    assert hash32(torch.tensor([0, 1, 2, WORD])).tolist() == [0, 1753845952, 3507691905, 1734902346]
    assert [int(root_key(0, 0, CPU)), int(root_key(1, 0, CPU)), int(root_key(0, 1, CPU))] == [
        263828145,
        1429752044,
        840760760,
    ]
    assert random_bits(fold(root_key(42, 7, CPU), 5), torch.arange(4)).tolist() == [
        673891508,
        1185562362,
        1868560182,
        2962603887,
    ]


@pytest.mark.parametrize("function", ["hash32", "counter", "key", "fold"])
def test_every_input_bit_flips_half_of_the_output_bits(function: str) -> None:
    # 4096 words: a fair coin's frequency has standard deviation 0.008, so 0.05 is six of them.
    words = torch.randint(0, 2**32, (4096,))
    other = torch.tensor(123_456_789)
    mixes = {
        "hash32": hash32,
        "counter": lambda x: random_bits(other, x),
        "key": lambda x: random_bits(x, torch.tensor(3)),
        "fold": lambda x: fold(other, x),
    }
    mix = mixes[function]
    for bit in range(32):
        frequency = bits_of(mix(words) ^ mix(words ^ (1 << bit))).double().mean(dim=0)
        assert float((frequency - 0.5).abs().max()) < 0.05


def test_words_are_uniform() -> None:
    words = random_bits(root_key(1, 2, CPU), torch.arange(2**16))
    assert int(words.min()) >= 0
    assert int(words.max()) <= WORD
    # standard deviation of a bit's frequency: 0.002
    assert float((bits_of(words).double().mean(dim=0) - 0.5).abs().max()) < 0.01
    for shift in (0, 12, 24):  # chi-square with 255 degrees of freedom: 255 ± 23
        counts = ((words >> shift) & 255).bincount(minlength=256).double()
        assert 255 - 115 < float(((counts - 256) ** 2 / 256).sum()) < 255 + 115


def test_streams_of_neighbouring_keys_agree_on_half_of_the_bits() -> None:
    counters = torch.arange(4096)
    streams = {
        (seed, step, sample): random_bits(fold(root_key(seed, step, CPU), sample), counters)
        for seed, step, sample in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 2**32), (0, 1, 1)]
    }
    for a, b in itertools.combinations(streams.values(), 2):  # 131072 bits: standard deviation 0.0014
        assert abs(float(bits_of(a ^ b).double().mean()) - 0.5) < 0.008
    first = streams[0, 0, 0]  # and a stream with itself, shifted
    assert abs(float(bits_of(first[1:] ^ first[:-1]).double().mean()) - 0.5) < 0.008


def test_keys_of_a_run_are_distinct() -> None:
    # 30000 draws of 2**32 words collide 0.1 times on average.
    keys = {
        int(key)
        for seed, step in itertools.product(range(3), range(100))
        for key in fold(root_key(seed, step, CPU), torch.arange(100))
    }
    assert len(keys) >= 30_000 - 2
    assert int(fold(torch.tensor(5), 1)) != int(fold(torch.tensor(5), 1 + 2**32))


def test_a_word_does_not_depend_on_what_is_drawn_with_it() -> None:
    keys, counters = fold(root_key(0, 0, CPU), torch.arange(5)), torch.arange(7)
    together = random_bits(keys[:, None], counters)
    assert together.shape == (5, 7)
    for i, key in enumerate(keys):
        for j, counter in enumerate(counters):
            assert int(together[i, j]) == int(random_bits(key, counter))
