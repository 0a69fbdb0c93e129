"""Spikes of loss and gradient norms: z-scores over exponentially averaged means and deviations, on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

_LEAST_STEPS = 20
_LEAST_DEVIATION = 1e-3
"""Of the mean: figures that hardly move are not scored by their rounding."""


class Spike(NamedTuple):
    """A figure of one step that is far above what it was."""

    name: str
    value: float
    mean: float
    score: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} is {self.score:.1f} deviations above its mean, {self.mean:.4g}"


@dataclass(frozen=True)
class RunningMoments:
    """Mean and variance of a figure: of all steps at first, then exponentially averaged over a span (West, 1979)."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation, at least a thousandth of the mean."""
        return max(math.sqrt(self.variance), _LEAST_DEVIATION * abs(self.mean), math.ulp(0.0))

    def after(self, value: float, span: int) -> RunningMoments:
        """Return the moments with one more value."""
        weight = max(1 / (self.count + 1), 2 / (span + 1))
        away = value - self.mean
        return RunningMoments(
            self.count + 1, self.mean + weight * away, (1 - weight) * (self.variance + weight * away * away)
        )


class SpikeDetector:
    """The moments of some figures, and which values stand out of them.

    A value that stands out is taken in as the largest that would not, so that it hides no later one, and a figure that
    has come to another level is soon at home there.

    Args:
        span: steps over which is averaged.
        threshold: score from which on a value stands out.
    """

    def __init__(self, span: int, threshold: float):
        self._span, self._threshold = span, threshold
        self._moments: dict[str, RunningMoments] = {}

    def take(self, figures: Mapping[str, float]) -> list[Spike]:
        """Take in the finite figures of the next step; return those that stand out."""
        found = []
        for name, value in figures.items():
            if not math.isfinite(value):
                continue
            moments = self._moments.get(name, RunningMoments())
            score = (value - moments.mean) / moments.deviation
            if moments.count >= min(_LEAST_STEPS, self._span) and score > self._threshold:
                found.append(Spike(name, value, moments.mean, score))
                value = moments.mean + self._threshold * moments.deviation
            self._moments[name] = moments.after(value, self._span)
        return found

    def state(self) -> dict[str, tuple[int, float, float]]:
        """Return count, mean and variance by figure."""
        return {name: (each.count, each.mean, each.variance) for name, each in self._moments.items()}

    def load(self, state: Mapping[str, tuple[int, float, float]]) -> None:
        """Take up what `state` returned."""
        self._moments = {name: RunningMoments(*moments) for name, moments in state.items()}
