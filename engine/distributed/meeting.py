"""Where the ranks of one attempt meet: a part of the launcher's store that no other attempt of this job has written.

torch's launcher serves one store through all restarts, and under the same keys: a rank that comes early would read the
address of a rank that is dead. TORCHELASTIC_RESTART_COUNT tells attempts apart on one node only: a launcher does not count
the restarts that a failure on another node makes it do.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable

import torch.distributed as dist

_ATTEMPT = "rlpheads/attempt"
"""Key of the attempt that rank 0 opened last."""
_PAUSE_S = 0.05


class MeetingError(RuntimeError):
    """Ranks did not come in time; the message names them."""


def open_meeting(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> dist.PrefixStore:
    """Return this attempt's part of a store that earlier attempts may have written too.

    Rank 0 opens an attempt under a name of its own, and lists the ranks that came to it, each by a word that is new in
    every process. A rank that finds an earlier attempt does not find its word in that list, and looks again.

    Raises:
        MeetingError: not all ranks came within `timeout_s` seconds.
    """
    word = uuid.uuid4().hex
    deadline = time.monotonic() + timeout_s
    if rank == 0:
        return _lead(store, word, world_size, deadline)
    while time.monotonic() < deadline:
        if store.check([_ATTEMPT]):
            attempt = store.get(_ATTEMPT).decode()
            store.set(f"{attempt}/came/{rank}", word)
            while time.monotonic() < deadline and store.get(_ATTEMPT).decode() == attempt:
                if store.check([f"{attempt}/all"]) and json.loads(store.get(f"{attempt}/all"))[rank] == word:
                    return dist.PrefixStore(attempt, store)
                time.sleep(_PAUSE_S)
        time.sleep(_PAUSE_S)
    raise MeetingError("rank 0 has not begun to wait for the others")


def _lead(store: dist.Store, word: str, world_size: int, deadline: float) -> dist.PrefixStore:
    attempt = f"{_ATTEMPT}/{word}"
    store.set(_ATTEMPT, attempt)
    others = [f"{attempt}/came/{rank}" for rank in range(1, world_size)]
    while others and not store.check(others):
        if time.monotonic() >= deadline:
            missing = _numbers(rank for rank, key in enumerate(others, 1) if not store.check([key]))
            raise MeetingError(f"{missing} of {world_size} did not come")
        time.sleep(_PAUSE_S)
    words = [word, *(found.decode() for found in store.multi_get(others))] if others else [word]
    store.set(f"{attempt}/all", json.dumps(words))
    return dist.PrefixStore(attempt, store)


def _numbers(ranks: Iterable[int]) -> str:
    """Name ranks, a few by number."""
    numbers = list(ranks)
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"rank(s) {', '.join(map(str, numbers[:8]))}{more}"
