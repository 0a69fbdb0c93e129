"""Means, shares and differences: against SciPy and published examples, and their coverage."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rlpheads.memorization.measures.estimates import (
    mean_difference,
    mean_estimate,
    share_difference,
    share_estimate,
)

FIRST, SECOND = torch.tensor([3.0, 4.0, 8.0, 1.0, 9.5]), torch.tensor([2.0, 2.5, 1.0, 4.0])


def test_means_are_those_of_scipy():
    expected = stats.ttest_1samp(FIRST.numpy(), 0).confidence_interval(0.9)
    found = mean_estimate(FIRST, 0.9)
    assert found == pytest.approx((5.1, expected.low, expected.high), rel=1e-6)
    welch = stats.ttest_ind(FIRST.numpy(), SECOND.numpy(), equal_var=False).confidence_interval(0.95)
    assert mean_difference(FIRST, SECOND) == pytest.approx((5.1 - 2.375, welch.low, welch.high), rel=1e-6)


def test_newcombes_own_example():
    """Table II (a) of the paper: 56/70 − 48/80 is 0.2, from .0524 to .3339 by method 10."""
    assert share_difference(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_what_cannot_be_estimated_is_unknown():
    assert math.isnan(mean_estimate(torch.ones(0)).value)
    alone = mean_estimate(torch.ones(1))
    assert alone.value == 1
    assert math.isnan(alone.low)
    assert not alone.excludes(5)
    assert math.isnan(mean_difference(FIRST, torch.ones(1)).high)
    assert all(map(math.isnan, share_difference(0.5, 10, 0.0, 0)))
    same = mean_difference(torch.ones(3), torch.ones(4))
    assert tuple(same) == (0, 0, 0)


@pytest.mark.parametrize("shares", [(0.1, 0.1), (0.5, 0.3), (0.02, 0.4)])
def test_differences_of_shares_cover(shares):
    rng = np.random.default_rng(5)
    hits = rng.binomial(80, shares[0], 1000), rng.binomial(150, shares[1], 1000)
    found = [share_difference(p / 80, 80, q / 150, 150) for p, q in zip(*hits, strict=True)]
    covered = np.mean([each.low <= shares[0] - shares[1] <= each.high for each in found])
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize("bad", [1.2, -0.1, math.nan])
def test_shares_are_fractions(bad):
    with pytest.raises(ValueError, match="share holds"):
        share_estimate(bad, 10)
    with pytest.raises(ValueError, match="values_N holds"):
        mean_estimate(torch.tensor([1.0, math.inf]))
