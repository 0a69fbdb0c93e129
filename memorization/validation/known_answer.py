"""One row of the table that `validate` prints: a known number, and the one that the code obtains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownAnswer:
    """A known number, the one obtained, and how far apart they may be.

    Attributes:
        name: what is measured, with its setting.
        expected: the known value, or the bound for `at_least`.
        obtained: what the code gives.
        tolerance: largest distance that passes; 0 asks for equality.
        at_least: the answer passes wherever it is not below `expected` − `tolerance`.
    """

    name: str
    expected: float
    obtained: float
    tolerance: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the answer is within its tolerance; NaN never is."""
        if self.at_least:
            return self.obtained >= self.expected - self.tolerance
        return abs(self.obtained - self.expected) <= self.tolerance


Check = Callable[[], Sequence[KnownAnswer]]
"""One group of known answers: a function without arguments, whose docstring's first line is the group's title."""
