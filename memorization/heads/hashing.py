"""Named random streams of this room, and the hash that random labels are made of.

Three layers name streams, each on its own, and what each returns is the content of files, so none may change:

* the engine derives a seed for each consumer from the run's seed and a name (`rlpheads.engine.config.streams.stream_seed`).
  This room gets such seeds as its `seed` arguments: those of "labels", "heads", "audit" and "refitted probes";
* `key_from_name`, here, names the streams below such a seed: one for each split and draw of the labels, one for each head's
  initial weights, one for each subset of an audit;
* the loaders name theirs in `rlpheads.loaders.contract.order`, and nothing here reads those.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from rlpheads.memorization.arguments import check_integers, check_seed

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio: splitmix64's increment, as a signed word
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def key_from_name(*name: str | int) -> int:
    """Key of the random stream called `name`, such as ("heads", seed, tap, draw): a signed 64-bit integer.

    It is the 8-byte BLAKE2b digest of the name's parts as a JSON list, read as a little-endian signed word. The engine's
    `stream_seed` hashes Python's `repr` instead and drops a bit: equal names give other numbers there. Naming streams,
    instead of counting draws from one generator, is what lets a consumer be added without shifting another's numbers.

    Raises:
        ValueError: a part is neither text nor an integer. `np.int64(1)` names the stream of 1; 1.0 and True would name others.
    """
    parts = [part if isinstance(part, str) else check_seed(part, "a part of a stream's name") for part in name]
    text = json.dumps(parts)  # unambiguous: ("a", 1) and ("a/1",) differ
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def splitmix64(key: int, counter_N: Tensor) -> Tensor:
    """Outputs number `counter_N` of the generator splitmix64 seeded with `key`, as signed words.

    The first output has number 1; number 0 hashes the key itself.

    Args:
        key: a signed 64-bit integer, from `key_from_name`.
        counter_N: integers of any shape; narrower ones than int64 are widened, for the hash takes 64 bits.

    Returns:
        int64 of the same shape and device; int64 products wrap, which is what the hash wants.

    Raises:
        ValueError: a key that is no signed 64-bit integer, or numbers that are no integers.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (OOPSLA 2014).
    """
    key = check_seed(key, "key")
    if not -(2**63) <= key < 2**63:
        raise ValueError(f"key is {key}; it must be a signed 64-bit integer, as label_key and key_from_name return")
    check_integers("counter_N", counter_N)
    z = counter_N.to(torch.int64) * _GOLDEN + key
    z = (z ^ logical_shift_right(z, 30)) * _MULTIPLIERS[0]
    z = (z ^ logical_shift_right(z, 27)) * _MULTIPLIERS[1]
    return z ^ logical_shift_right(z, 31)


def logical_shift_right(words: Tensor, num_bits: int) -> Tensor:
    """Shift int64 words right and fill with zeros: torch's own shift copies the sign."""
    return (words >> num_bits) & ((1 << (64 - num_bits)) - 1)
