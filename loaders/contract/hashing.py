"""Hashes of 64-bit words, in NumPy on the host and in torch on a device, bit for bit the same.

Nothing rests on a library's generator, whose stream may change with its version. Words are mixed by the finaliser of
splitmix64 (Steele, Lea & Flood, 2014, doi:10.1145/2660193.2660195; Stafford's variant 13). NumPy computes with unsigned
words; torch has signed ones only, whose sums and products wrap to the same bits.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from torch import Tensor

from rlpheads.loaders.contract.arrays import Int64Array, UInt64Array

GOLDEN = 0x9E3779B97F4A7C15
"""splitmix64's increment, 2**64 over the golden ratio."""
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1
_SIGNED_GOLDEN = GOLDEN - 2**64
_SIGNED_MULTIPLIERS = tuple(multiplier - 2**64 for multiplier in _MULTIPLIERS)


def mix64(words: UInt64Array) -> UInt64Array:
    """Return splitmix64's finaliser of each word: a bijection in which every bit moves every other."""
    mixed = words ^ (words >> np.uint64(30))
    mixed *= np.uint64(_MULTIPLIERS[0])
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_MULTIPLIERS[1])
    mixed ^= mixed >> np.uint64(31)
    return mixed


def unmix64(mixed: UInt64Array) -> UInt64Array:
    """Return the words of which `mix64` makes these: its steps backwards, each by its inverse."""
    words = mixed ^ (mixed >> np.uint64(31)) ^ (mixed >> np.uint64(62))
    words *= np.uint64(pow(_MULTIPLIERS[1], -1, 1 << 64))
    words ^= (words >> np.uint64(27)) ^ (words >> np.uint64(54))
    words *= np.uint64(pow(_MULTIPLIERS[0], -1, 1 << 64))
    words ^= (words >> np.uint64(30)) ^ (words >> np.uint64(60))
    return words


def absorb(state: UInt64Array, words: UInt64Array | np.uint64) -> UInt64Array:
    """Return a running hash's next state, with one more word in it."""
    return mix64((state ^ words) + np.uint64(GOLDEN))


def absorbed_words(state: UInt64Array, hashes: UInt64Array) -> UInt64Array:
    """Invert `absorb`: return the words that lead from a state to these hashes."""
    return (unmix64(hashes) - np.uint64(GOLDEN)) ^ state


def mix64_tensor(words: Tensor) -> Tensor:
    """Return what `mix64` returns, of int64 words on any device."""
    words = (words ^ shift_right(words, 30)) * _SIGNED_MULTIPLIERS[0]
    words = (words ^ shift_right(words, 27)) * _SIGNED_MULTIPLIERS[1]
    return words ^ shift_right(words, 31)


def absorb_tensor(state: Tensor, word: Tensor) -> Tensor:
    """Return what `absorb` returns, of int64 words on any device."""
    return mix64_tensor((state ^ word) + _SIGNED_GOLDEN)


def shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift in zeros from the left: torch's int64 shift copies the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def hash64(*words: int | Int64Array | UInt64Array) -> UInt64Array:
    """Hash a sequence of 64-bit words; arrays broadcast, and integers are taken modulo 2**64.

    For fixed other words this is a bijection in each word, so distinct indices never share a hash.

    Returns:
        uint64, of the words' broadcast shape.
    """
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        bits = np.uint64(word & _MASK) if isinstance(word, int) else np.asarray(word).astype(np.uint64)
        state = absorb(state, bits)
    return state.reshape(np.broadcast_shapes(*(np.shape(word) for word in words)))


@lru_cache(maxsize=64)
def stream_key(name: str) -> int:
    """Return the 64-bit word of a named stream, so that a new consumer of randomness never shifts another's draws."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


@lru_cache(maxsize=256)
def stream_state(seed: int, stream: str, epoch: int) -> UInt64Array:
    """Return the hash of (seed, stream, epoch), which a whole epoch shares; the canonical index is absorbed next."""
    return hash64(seed, stream_key(stream), epoch)
