"""Random-label accuracy over several draws: their hits pooled as one binomial count, and a test of whether they may be.

Draws of the labels are independent, so M draws over n samples are M·n trials where no draw differs from the others beyond
chance. Student's t across draws does not know that: with two draws it has one degree of freedom, and its interval is wider
than that of one draw alone.
"""

from __future__ import annotations

from typing import NamedTuple

from scipy import stats
from torch import Tensor

from rlpheads.memorization.measures.intervals import Interval, as_float64, draw_interval, wilson_interval

HETEROGENEITY_LEVEL = 0.05
"""p-value of the draws' equality below which they are not pooled."""


class PooledAccuracy(NamedTuple):
    """Mean accuracy over the draws with its interval, and the p-value of the draws' equality.

    `is_pooled`: whether the interval is Wilson's on the pooled count. Where the draws differ (`heterogeneity` below 5 %) it is
    Student's t across draws, but never narrower than Wilson's and cut to [0, 1].
    """

    accuracy: float
    interval: Interval
    heterogeneity: float
    is_pooled: bool


def pool_draws(num_hits_M: Tensor, num_samples: int, level: float = 0.95) -> PooledAccuracy:
    """Pool the hits of M draws over the same n samples.

    Args:
        num_hits_M: whole numbers of hits (M,), M ≥ 1.
        num_samples: n ≥ 1.
        level: nominal coverage.

    The interval is for heads whose draws differ by their labels alone. A scatter between trainings that the test does not
    see is not in it: with two draws it sees little (n = 1,000, a scatter of .02: 84 % coverage, at eight draws 91 %), and
    Wilson's interval of one draw says nothing of it either. Compare several runs for that scatter (`rlpheads study`).

    Raises:
        ValueError: no draw, or hits that are NaN, no whole numbers or outside [0, n].
    """
    hits_M = as_float64(num_hits_M)
    if hits_M.dim() != 1 or not len(hits_M):
        raise ValueError(f"num_hits_M must have shape (M,), M ≥ 1; given {tuple(hits_M.shape)}")
    wilson_interval(hits_M, num_samples, level)  # checks each draw
    num_draws = len(hits_M)
    pooled = wilson_interval(hits_M.sum(), num_draws * num_samples, level)
    accuracy = float(hits_M.sum()) / (num_draws * num_samples)
    heterogeneity = draw_heterogeneity(hits_M, num_samples)
    if heterogeneity >= HETEROGENEITY_LEVEL:
        return PooledAccuracy(accuracy, pooled, heterogeneity, is_pooled=True)
    across = draw_interval(hits_M / num_samples, level)
    low, high = across.low.minimum(pooled.low).clamp(min=0.0), across.high.maximum(pooled.high).clamp(max=1.0)
    return PooledAccuracy(accuracy, Interval(low, high, level), heterogeneity, is_pooled=False)


def draw_heterogeneity(num_hits_M: Tensor, num_samples: int) -> float:
    """Return the p-value of M binomial counts of n trials having one probability; 1 for one draw.

    Pearson's χ² with M − 1 degrees of freedom; an approximation below about five hits a draw.
    """
    accuracy_M = as_float64(num_hits_M) / num_samples
    mean = float(accuracy_M.mean())
    if len(accuracy_M) < 2 or not 0 < mean < 1:
        return 1.0
    statistic = num_samples * float((accuracy_M - mean).square().sum()) / (mean * (1 - mean))
    return float(stats.chi2.sf(statistic, len(accuracy_M) - 1))
