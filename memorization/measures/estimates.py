"""Means, shares and differences of two independent groups, each with an interval.

Shares take an effective number of trials: a sample whose hits were averaged over F draws stands for F trials.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_finite, check_fractions, check_open_fraction
from rlpheads.memorization.measures.intervals import as_float64, effective_wilson_interval


class Estimated(NamedTuple):
    """A number with the ends of its interval; NaN where there is nothing to estimate it from."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether the interval leaves `value` out; an unknown one leaves out nothing."""
        return value < self.low or value > self.high


UNKNOWN = Estimated(math.nan, math.nan, math.nan)


def mean_estimate(values_N: Tensor, level: float = 0.95) -> Estimated:
    """Mean of independent values (N,) with Student's t interval; without one for fewer than two. Approximate where skewed."""
    check_open_fraction("level", level)
    mean, error, freedom = _moments("values_N", values_N)
    return _around(mean, error, freedom, level)


def spread_estimate(values_N: Tensor, level: float = 0.95) -> Estimated:
    """Standard deviation of independent normal values (N,) with the χ² interval; unknown for fewer than two."""
    check_open_fraction("level", level)
    _, error, freedom = _moments("values_N", values_N)
    if not freedom:
        return UNKNOWN
    deviation, tail = error * math.sqrt(freedom + 1), (1 - level) / 2
    low, high = (deviation * math.sqrt(freedom / float(stats.chi2.isf(share, freedom))) for share in (tail, 1 - tail))
    return Estimated(deviation, low, high)


def mean_difference(first_P: Tensor, second_Q: Tensor, level: float = 0.95) -> Estimated:
    """Mean of one group minus that of another, with Welch's t interval; without one where a group has fewer than two.

    Source: B. L. Welch, Biometrika 34 (1947) 28-35. Approximate where the values are skewed.
    """
    check_open_fraction("level", level)
    (mean_p, error_p, freedom_p), (mean_q, error_q, freedom_q) = (
        _moments("first_P", first_P),
        _moments("second_Q", second_Q),
    )
    error = math.hypot(error_p, error_q)
    terms = error_p**4 / freedom_p + error_q**4 / freedom_q if freedom_p and freedom_q else 0.0
    freedom = error**4 / terms if terms > 0 else float(min(freedom_p, freedom_q))
    return _around(mean_p - mean_q, error, freedom, level)


def share_estimate(share: float, num_trials: int, level: float = 0.95) -> Estimated:
    """Share in [0, 1] of n trials with Wilson's interval; unknown for no trial."""
    check_open_fraction("level", level)
    if check_count("num_trials", num_trials, 0) == 0:
        return UNKNOWN
    check_fractions("share", as_float64(share))
    interval = effective_wilson_interval(share * num_trials, num_trials, level)
    return Estimated(float(share), float(interval.low), float(interval.high))


def share_difference(
    first: float, first_trials: int, second: float, second_trials: int, level: float = 0.95
) -> Estimated:
    """Share of one group minus that of another, with Newcombe's interval from the two Wilson intervals; unknown for no trial.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10.
    """
    one, other = share_estimate(first, first_trials, level), share_estimate(second, second_trials, level)
    if not first_trials or not second_trials:
        return UNKNOWN
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Estimated(value, low, high)


def _moments(name: str, values: Tensor) -> tuple[float, float, int]:
    """Return mean, standard error and degrees of freedom; NaN, NaN and 0 where there are none."""
    numbers = as_float64(values)
    if numbers.dim() != 1:
        raise ValueError(f"{name} must have one dimension; given {tuple(numbers.shape)}")
    check_finite(name, numbers)
    count = len(numbers)
    mean = float(numbers.mean()) if count else math.nan
    error = float(numbers.std(correction=1)) / math.sqrt(count) if count > 1 else math.nan
    return mean, error, max(0, count - 1)


def _around(mean: float, error: float, freedom: float, level: float) -> Estimated:
    if not freedom:
        return Estimated(mean, math.nan, math.nan)
    half = float(stats.t.isf((1 - level) / 2, freedom)) * error
    return Estimated(mean, mean - half, mean + half)
