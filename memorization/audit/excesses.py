"""Label excess and membership excess: differences of two random-label accuracies, with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_fractions, check_open_fraction
from rlpheads.memorization.measures.intervals import as_float64, draw_interval


@dataclass(frozen=True)
class Excess:
    """A difference of two random-label accuracies with its two-sided interval."""

    value: float
    low: float
    high: float
    level: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def is_positive(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0

    @property
    def is_negative(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high < 0


@dataclass(frozen=True)
class LabelExcess(Excess):
    """Label excess: its interval, for these features and own labels, and `luck`, the half-width of its null interval.

    Attributes:
        luck: with probability `level` the excess lies within ± luck under the null hypothesis that the features hold
            nothing about the own labels.
    """

    luck: float

    @property
    def is_positive(self) -> bool:
        """Whether it is above the null interval."""
        return self.value > self.luck

    @property
    def is_negative(self) -> bool:
        """Whether it is below the null interval."""
        return self.value < -self.luck


def label_excess(own_M: Tensor, fresh_F: Tensor, level: float = 0.95) -> LabelExcess:
    """Mean over the run's own draws minus the accuracy expected of fresh labels, with its interval and its null interval.

    * The interval is for these features and these own labels, both held fixed: then the own accuracy is a plain number,
      and what is uncertain is the fresh labels' expectation. It is Student's t interval of the mean over fresh draws.
    * `luck` tests whether the features hold anything about the own labels. Under the null they do not, own and fresh
      labels are exchangeable, and the excess stays within t_{M+F−2}·s·√(1/M + 1/F) with probability `level` (s pooled).
      With one own draw that is the prediction interval of one more fresh draw.

    Nothing is claimed about other labels, or the same training begun anew: the accuracies of own draws that features
    do hold scatter more than fresh ones, by how much one run cannot tell. Compare several runs for that (`rlpheads study`).

    Args:
        own_M: accuracies in [0, 1], M ≥ 1.
        fresh_F: accuracies in [0, 1], F ≥ 2.
        level: nominal coverage.

    Raises:
        ValueError: no own or fewer than two fresh draws, or accuracies that are NaN or outside [0, 1].

    Source: Student's t; for the null interval e.g. Hahn and Meeker, Statistical Intervals (1991), section 4.8.
    """
    check_open_fraction("level", level)
    own, fresh = as_float64(own_M), as_float64(fresh_F)
    check_count("the number of own draws", len(own))
    check_count("the number of fresh draws", len(fresh), 2)
    check_fractions("own_M", own)
    check_fractions("fresh_F", fresh)
    expected = draw_interval(fresh, level)
    freedom = len(own) + len(fresh) - 2
    squares = sum(float((group - group.mean()).square().sum()) for group in (own, fresh))
    error = math.sqrt(squares / freedom * (1 / len(own) + 1 / len(fresh)))
    return LabelExcess(
        value=float(own.mean() - fresh.mean()),
        low=float(own.mean() - expected.high),
        high=float(own.mean() - expected.low),
        level=level,
        luck=float(stats.t.isf((1 - level) / 2, freedom)) * error,
    )


def membership_excess(members_F: Tensor, heldout_F: Tensor, level: float = 0.95) -> Excess:
    """Mean over fresh draws of (training features − held-out features), with Student's t interval over the draws.

    The interval covers the labels' randomness. The images are held fixed: it is for these training and these
    held-out images.

    Args:
        members_F: accuracies in [0, 1] on training features, F ≥ 2.
        heldout_F: accuracies on as many held-out features, F.
        level: nominal coverage.

    Raises:
        ValueError: fewer than two draws, not as many on both sides, or accuracies that are NaN or outside [0, 1].
    """
    members, heldout = as_float64(members_F), as_float64(heldout_F)
    if members.shape != heldout.shape:
        raise ValueError(f"members have {len(members)} draws and held-out samples {len(heldout)}; give equally many")
    check_fractions("members_F", members)
    check_fractions("heldout_F", heldout)
    differences_F = members - heldout
    interval = draw_interval(differences_F, level)
    return Excess(float(differences_F.mean()), float(interval.low), float(interval.high), level)
