"""Named random streams: every consumer derives its own seed, so that adding one never shifts another."""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, *name: str | int) -> int:
    """Seed of the stream called `name` (63 bits), a hash of the run's seed and the name."""
    digest = hashlib.blake2b(repr((seed, *name)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
