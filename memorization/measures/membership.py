"""Membership inference: how well a score tells training images from images that were never trained on.

The attacker knows the score of each image and nothing else. `auc` is over all thresholds; what a leak costs is what can be
said with hardly a false accusation: the true-positive rate at a false-positive rate of 1 % or 0.1 %.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_open_fraction
from rlpheads.memorization.measures.canaries import canary_auc
from rlpheads.memorization.measures.estimates import Estimated
from rlpheads.memorization.measures.intervals import as_float64

FALSE_POSITIVE_RATES = (0.01, 0.001)


class MembershipInference(NamedTuple):
    """One score's power to tell members from non-members.

    `auc` is the probability that a member's score is above a non-member's, ties counting half; `tpr_at` the share of members
    above the threshold that a false-positive rate allows, by that rate, each with its interval.
    """

    auc: Estimated
    tpr_at: dict[float, Estimated]


def membership_inference(
    member_P: Tensor,
    nonmember_Q: Tensor,
    rates: tuple[float, ...] = FALSE_POSITIVE_RATES,
    level: float = 0.95,
) -> MembershipInference:
    """Judge a score, higher for members, by what it says of members (P,) and of non-members (Q,).

    For the loss, give minus the loss. The interval of the AUC is `canary_auc`'s, those of the rates `true_positive_rate`'s.

    Raises:
        ValueError: an empty side, another shape, or NaN.

    Source: Carlini et al., Membership Inference Attacks From First Principles (IEEE S&P 2022), for the rates.
    """
    auc = Estimated(*canary_auc(member_P, nonmember_Q, level=level))
    return MembershipInference(auc, {rate: true_positive_rate(member_P, nonmember_Q, rate, level) for rate in rates})


def true_positive_rate(member_P: Tensor, nonmember_Q: Tensor, rate: float, level: float = 0.95) -> Estimated:
    """Share of the members above the least threshold that at most `rate` of the non-members lie above, with its interval.

    The interval needs no assumption on the scores and covers with at least `level`: the threshold's ends are from the order of
    the non-members (their number above it is binomial), and Clopper and Pearson's are for the share of members above these,
    each with half of the error. Too few non-members to place the threshold (0.1 % of 360) leave the lower end at 0.

    Args:
        member_P: scores of members (P,).
        nonmember_Q: scores of non-members (Q,).
        rate: false-positive rate, in (0, 1).
        level: least coverage.

    Source: R. A. Hilgers, Methods of Information in Medicine 30 (1991) 96-101.
    """
    check_open_fraction("rate", rate)
    check_open_fraction("level", level)
    members, others = (_scores(name, values) for name, values in (("member_P", member_P), ("nonmember_Q", nonmember_Q)))
    descending, tail = np.sort(others)[::-1], (1 - level) / 4
    allowed = stats.binom(len(others), rate)
    fewest, most = int(allowed.ppf(tail)), int(allowed.isf(tail))

    def above(threshold: float) -> int:
        return int((members > threshold).sum())

    def beyond(count: int) -> float:
        """The score that `count` others lie above, at most."""
        return float(descending[count]) if count < len(others) else -math.inf

    value = above(beyond(math.floor(rate * len(others) + 1e-9))) / len(members)
    low = _least_share(above(beyond(fewest - 1)), len(members), tail) if fewest else 0.0
    high = 1 - _least_share(len(members) - above(beyond(most)), len(members), tail)
    return Estimated(value, min(low, value), max(high, value))


def _least_share(hits: int, trials: int, tail: float) -> float:
    """Return Clopper and Pearson's lower end."""
    return float(stats.beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0


def _scores(name: str, values: Tensor) -> np.ndarray:
    numbers = as_float64(values).numpy()
    if numbers.ndim != 1 or not len(numbers) or np.isnan(numbers).any():
        raise ValueError(f"{name} must have one dimension, a value at least and no NaN; given {tuple(numbers.shape)}")
    return numbers
