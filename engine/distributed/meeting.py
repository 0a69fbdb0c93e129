"""Where the ranks of one attempt meet: a part of the launcher's store that no other attempt of this job has written.

torch's launcher serves one store through all restarts, and under the same keys: a rank that comes early would read the
address of a rank that is dead. TORCHELASTIC_RESTART_COUNT tells attempts apart on one node only: a launcher does not count
the restarts that a failure on another node makes it do. `meeting_places` finds the store where the launchers disagree.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch.distributed as dist

_ATTEMPT = "rlpheads/attempt"
"""Key of the attempt that rank 0 opened last."""
_PAUSE_S = 0.05


class MeetingError(RuntimeError):
    """Ranks did not come in time; the message names them."""


def open_meeting(
    stores: Callable[[], Sequence[dist.Store]], rank: int, world_size: int, timeout_s: float
) -> dist.PrefixStore:
    """Return this attempt's part of a store that earlier attempts may have written too.

    Rank 0 opens an attempt under a name of its own, and lists the ranks that came to it, each by a word that is new in
    every process. A rank that finds an earlier attempt does not find its word in that list, and looks again.

    Args:
        stores: returns those in which the ranks may meet, asked again and again; rank 0 opens its attempt in the first.
        rank: of this process.
        world_size: number of ranks.
        timeout_s: seconds for all of them to come.

    Raises:
        MeetingError: not all ranks came in time.
    """
    word = uuid.uuid4().hex
    deadline = time.monotonic() + timeout_s
    if rank == 0:
        (store, *_) = stores()
        return _lead(store, word, world_size, deadline)
    while time.monotonic() < deadline:
        for store in stores():
            with suppress(dist.DistNetworkError):  # its launcher is gone
                if (attempt := _join(store, rank, word)) is not None:
                    return dist.PrefixStore(attempt, store)
        time.sleep(_PAUSE_S)
    raise MeetingError("rank 0 has not begun to wait for the others")


def _join(store: dist.Store, rank: int, word: str) -> str | None:
    """Come to the attempt that was opened last in a store; return its name where it lists this process."""
    if not store.check([_ATTEMPT]):
        return None
    attempt = store.get(_ATTEMPT).decode()
    store.set(f"{attempt}/came/{rank}", word)
    listed = store.check([f"{attempt}/all"]) and json.loads(store.get(f"{attempt}/all"))[rank] == word
    return attempt if listed else None


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
