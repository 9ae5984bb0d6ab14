"""Counter-based random integers: a number is a pure function of its key, whatever device or batch computes it.

The source of every random op (patch subsets, dropout), written twice: in PyTorch, where 32-bit words are kept in int64
tensors because it has no unsigned multiply (int64 products wrap, which leaves their low 32 bits right), and for Triton
kernels (``device_*``), in uint32. Both give the same words.
"""

from typing import TypeVar

import torch
from torch import Tensor

from .triton_runtime import jit, tl

_WORD = 0xFFFFFFFF
Word = TypeVar("Word", Tensor, int)
_STRIDE = 0x9E3779B9  # odd and near 2**32 / golden ratio: neighbouring counters land far apart


def hash32(x: Word) -> Word:
    """Mix 32-bit words (an integer, or an int64 tensor, in [0, 2**32)): a bijection with good avalanche.

    The multiply-xorshift hash "lowbias32" of C. Wellons (hash-prospector), bias 0.17.
    """
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def fold(key: Tensor, value: Tensor | int) -> Tensor:
    """Derive a new 32-bit key from ``key`` and a 64-bit integer ``value`` (broadcast against each other)."""
    if isinstance(value, Tensor):
        return _fold(key, value.to(key.device, torch.int64))
    return _fold(key, torch.full((), value, dtype=torch.int64, device=key.device))  # a copy would wait for the device


def root_key(seed: int, step: int, device: torch.device) -> Tensor:
    """Return the 0-d key of a run's ``seed`` at optimiser step ``step``."""
    return fold(fold(torch.zeros((), dtype=torch.int64, device=device), seed), step)


def host_key(*values: int) -> int:
    """Fold host integers, seed and step first, into a key for a kernel, in [-2**31, 2**31): the key's bits as int32."""
    key = 0
    for value in values:
        key = _fold(key, value)
    return signed32(key)


def signed32(word: int) -> int:
    """Return the int32 with the bits of ``word`` in [0, 2**32).

    Triton takes an argument for int64 above 2**31, where its interpreter computes on unsigned words.
    """
    return word - (word >> 31 << 32)


def _fold(key: Word, value: Word) -> Word:
    key = hash32(key ^ hash32(value & _WORD))
    return hash32((key + _STRIDE + ((value >> 32) & _WORD)) & _WORD)


def random_bits(key: Tensor, counter: Tensor) -> Tensor:
    """Draw one 32-bit word for each ``counter`` (int64) under ``key``, broadcast against each other."""
    return hash32(hash32((counter * _STRIDE + key) & _WORD) ^ key)


@jit
def device_hash32(x):
    """:func:`hash32` of uint32 ``x``."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@jit
def device_fold(key, value):
    """:func:`fold` of uint32 ``key`` (of a :func:`host_key`, ``.to(tl.uint32)``) and int64 ``value``."""
    key = device_hash32(key ^ device_hash32(value.to(tl.uint32)))
    return device_hash32(key + 0x9E3779B9 + (value >> 32).to(tl.uint32))


@jit
def device_random_bits(key, counter):
    """:func:`random_bits` of uint32 ``key`` and integer ``counter``."""
    return device_hash32(device_hash32(counter.to(tl.uint32) * 0x9E3779B9 + key) ^ key)
