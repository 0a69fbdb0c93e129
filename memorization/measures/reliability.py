"""Reliability of a ranking of samples: whether one half of the measurements ranks them as the other half does.

A ranking whose halves do not agree is one of chance, however large its values are. The parts that are split are independent
draws of the random labels, or (of the classes' losses) the epochs of the ledgers, which share their network.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rlpheads.memorization.arguments import check_count

LEAST_RELIABILITY = 0.5
"""Below it, more of a ranking's variance is noise than is not, and it is called not resolvable."""


class Reliability(NamedTuple):
    """Split-half reliability of the mean over P parts, stepped up to all of them by Spearman and Brown.

    Attributes:
        value: 1 where the halves rank alike, 0 where they have nothing in common; NaN for one part.
        high: upper end of its 95 % interval (Fisher's, of the halves' correlation).
        num_parts: P.
        part: what a part is, as a noun in the plural: draws or ledgers.
        needed: parts that would do: the least number, if the reliability is at the upper end of its interval.
    """

    value: float
    high: float
    num_parts: int
    part: str
    needed: int

    @property
    def is_resolvable(self) -> bool:
        """Whether the ranking is more than noise."""
        return self.value >= LEAST_RELIABILITY

    def describe(self) -> str:
        """One phrase for a report."""
        if self.is_resolvable:
            return f"split-half reliability {self.value:.2f} over {self.num_parts} {self.part}"
        found = "" if math.isnan(self.value) else f" (split-half reliability {self.value:.2f} over {self.num_parts})"
        return f"not resolvable: needs {self.needed} {self.part} or more{found}"


def mean_reliability(
    values_PN: NDArray[np.floating], part: str, *, least_needed: int = 2, num_splits: int = 8, seed: int = 0
) -> Reliability:
    """Reliability of the ranking of N samples by their mean over P parts.

    Args:
        values_PN: what each part says of each sample; samples with a NaN are left out.
        part: what a part is, in the plural.
        least_needed: parts to ask for at least where they do not resolve.
        num_splits: random halvings over which the correlation is averaged (two parts have one).
        seed: of the halvings.

    Source: Spearman (1910) and Brown (1910), British Journal of Psychology 3; ranks are compared, by Spearman's ρ.
    """
    check_count("num_splits", num_splits)
    values_PN = values_PN[:, ~np.isnan(values_PN).any(0)]
    num_parts, num_samples = values_PN.shape
    if num_parts < 2 or num_samples < 4:
        return Reliability(math.nan, math.nan, num_parts, part, max(2, least_needed))
    random, half = np.random.default_rng(seed), num_parts // 2
    correlations = []
    for _ in range(1 if num_parts == 2 else num_splits):
        order = random.permutation(num_parts)
        first, second = (values_PN[chosen].mean(0, dtype=np.float64) for chosen in (order[:half], order[half:]))
        correlations.append(rank_correlation(first, second))
    return stepped_up(float(np.mean(correlations)), num_samples, num_parts, part, least_needed=least_needed)


def stepped_up(
    correlation: float, num_samples: int, num_parts: int, part: str, *, least_needed: int = 2
) -> Reliability:
    """Reliability of P parts, whose halves have this rank correlation over so many samples."""
    correlation = 0.0 if math.isnan(correlation) else correlation  # one side is constant: it ranks nothing
    centre = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, correlation)))
    upper = math.tanh(centre + 1.96 / math.sqrt(max(1, num_samples - 3)))
    value, high = _spearman_brown(correlation, 2), _spearman_brown(upper, 2)
    return Reliability(value, high, num_parts, part, max(least_needed, _parts_for(high, num_parts)))


def rank_correlation(first_N: NDArray[np.floating], second_N: NDArray[np.floating]) -> float:
    """Spearman's ρ, ties sharing their rank; NaN where one side is constant."""
    first, second = stats.rankdata(first_N), stats.rankdata(second_N)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _spearman_brown(correlation: float, factor: float) -> float:
    """Return the reliability of so many times the parts."""
    return factor * correlation / (1 + (factor - 1) * max(correlation, 0.0))


def _parts_for(reliability: float, num_parts: int) -> int:
    """Return how many parts have `LEAST_RELIABILITY`, where `num_parts` have `reliability`."""
    if reliability <= 0:
        return 2 * num_parts  # nothing says how many would do; these do not
    odds = LEAST_RELIABILITY / (1 - LEAST_RELIABILITY) * (1 - reliability) / reliability
    return max(num_parts + 1, math.ceil(num_parts * odds))
