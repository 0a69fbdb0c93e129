"""How long each rank takes by itself before the ranks of a step meet, so that the one which the others wait for has a name.

All ranks leave a step together, at the last message of its backward pass: whole steps take equally long everywhere, and the
host's clock cannot tell who came late. What a rank does before the first message nobody can lengthen for it: waiting for its
images, preparing them, and the forward pass. (Not so where that has messages itself: batch normalisation over all ranks,
heads sharded by class.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol


class Timer(Protocol):
    """Adds up how long what is measured takes."""

    def measuring(self) -> AbstractContextManager[None]:
        """Measure what is inside."""

    @property
    def seconds(self) -> float:
        """Seconds so far."""


class HostTimer:
    """Times on the host, where the work is done there; `now` tells seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._seconds = 0.0
        self._began = 0.0

    def measuring(self) -> HostTimer:
        """Measure what is inside: one stretch at a time, and one that an exception ends is not counted."""
        return self

    def __enter__(self) -> None:
        self._began = self._now()

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        if raised is None:
            self._seconds += self._now() - self._began

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._seconds


class RankTimes(NamedTuple):
    """Seconds of a rank over the steps of a window: waiting for images, and working on them before the ranks meet."""

    waited: float
    worked: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.waited + self.worked


class OwnTime:
    """This rank's times, window by window.

    Args:
        work: measures its work before the ranks meet.
        waited: tells how long it has waited for images so far.
    """

    def __init__(self, work: Timer, waited: Callable[[], float]):
        self.work = work
        self._waited = waited
        self._before = RankTimes(0.0, 0.0)

    def take(self) -> RankTimes:
        """Return the seconds since the last call."""
        before, self._before = self._before, RankTimes(self._waited(), self.work.seconds)
        return RankTimes(self._before.waited - before.waited, self._before.worked - before.worked)


def slowest_rank(ranks: Sequence[RankTimes], num_steps: int) -> dict[str, float]:
    """Return which rank took longest in a window, and its seconds a step; nothing where no other rank waits for it."""
    if len(ranks) < 2:
        return {}
    slowest = max(range(len(ranks)), key=lambda rank: ranks[rank].total)
    found = ranks[slowest]
    return {
        "slowest_rank": slowest,
        "slowest_rank_seconds": found.total / num_steps,
        "slowest_rank_data_wait": found.waited / num_steps,
    }
