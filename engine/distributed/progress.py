"""What a rank is doing, phase by phase, and how long each phase may take."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

_LEAST_S = 45.0
_MULTIPLE = 5.0


@dataclass(frozen=True)
class Patience:
    """How long a phase may take before its rank counts as hung.

    Attributes:
        timeout_s: seconds for any phase but its first time; None: 5 times the slowest so far of its name, at least 45 s.
        first_s: seconds for a phase's first time, which may compile, start workers or read much, while some rank works.
    """

    timeout_s: float | None = None
    first_s: float = 1800.0

    @property
    def silence_s(self) -> float:
        """Seconds without any sign of life, whatever the phase."""
        return _LEAST_S if self.timeout_s is None else self.timeout_s

    def limit_s(self, slowest_s: float | None) -> float:
        """Return the limit of a phase whose slowest time so far is known, or that has not been before."""
        if slowest_s is None:
            return self.first_s
        return max(_LEAST_S, _MULTIPLE * slowest_s) if self.timeout_s is None else self.timeout_s


class Progress:
    """The phase that this rank is in. All ranks go through the same phases in the same order.

    Attributes:
        phase: its name.
        step: optimizer steps taken when it began.
        count: phases begun so far: the rank with the smallest is the furthest behind.
        turns: turns so far of loops that say so.
        is_judged: whether a hang was found, which ends this rank in a moment.
    """

    def __init__(self) -> None:
        self.is_judged = False
        self.turns = 0
        self.phase, self.step, self.count = "starting", 0, 0
        self._since = time.monotonic()
        self._times: dict[str, int] = defaultdict(int)
        self._slowest: dict[str, float] = {}

    def enter(self, phase: str, step: int | None = None) -> None:
        """Begin a phase, which ends the one before."""
        now = time.monotonic()
        times, took = self._times[self.phase], now - self._since
        # The first time is known until there is a second: it may have compiled, and would set the limit for good.
        self._slowest[self.phase] = took if times <= 1 else max(took, self._slowest[self.phase])
        self._times[self.phase] = times + 1
        self.phase, self.step = phase, self.step if step is None else step
        self.count += 1
        self._since = now

    def take_turn(self) -> None:
        """Say that a long loop is at its next turn: from its lines it cannot be told from one that goes round for ever.

        For loops that have an end which their turns bring nearer, such as blocks of rows.
        """
        self.turns += 1

    def restart_phase(self) -> None:
        """Count the phase's time anew."""
        self._since = time.monotonic()

    def wait_if_judged(self) -> None:
        """Wait for the end where a hang was found: an error that this rank gets of it says less than the verdict."""
        while self.is_judged:
            time.sleep(1)

    @property
    def is_first(self) -> bool:
        """Whether the phase has not been before, so that nobody knows how long it takes."""
        return self.phase not in self._slowest

    @property
    def seconds(self) -> float:
        """Seconds since the phase began."""
        return time.monotonic() - self._since

    def is_overdue(self, patience: Patience) -> bool:
        """Whether the phase takes longer than it may."""
        return self.seconds > patience.limit_s(self._slowest.get(self.phase))
