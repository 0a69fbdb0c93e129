"""A run that was started, however that was: its processes, signals to them, and its end."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress

LIMIT_S = 900.0
"""Seconds that one start may take: what takes longer hangs."""
_LOOK_S = 0.02


class StartedRun(ABC):
    """One start of a run."""

    @abstractmethod
    def ranks(self) -> dict[int, int]:
        """Return the process of each rank that lives, by its number."""

    @property
    def launcher(self) -> int | None:
        """The process of the launcher, if there is one and it lives."""
        return None

    @abstractmethod
    def has_ended(self) -> bool:
        """Whether no process of this start is left."""

    @property
    @abstractmethod
    def code(self) -> int | None:
        """The exit code: the launcher's, or the first one that is not 0; negative for a signal; None before the end."""

    @abstractmethod
    def kill(self) -> None:
        """End all processes of this start."""


def send(number: signal.Signals, processes: Sequence[int]) -> bool:
    """Send a signal to processes; return whether one of them lived."""
    sent = False
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
            sent = True
    return sent


def wait(started: StartedRun, until: Callable[[], bool] = lambda: False, limit_s: float = LIMIT_S) -> bool:
    """Wait for the end of a start, or until something is so; return whether it is in time. All is killed where it is not."""
    deadline = time.monotonic() + limit_s
    while not started.has_ended() and not until():
        if time.monotonic() > deadline:
            started.kill()
            return False
        time.sleep(_LOOK_S)
    return True
