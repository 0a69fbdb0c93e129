"""Membership inference by known answers: normal scores, whose rates have a closed form, and extremes."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from rlpheads.memorization.measures.membership import membership_inference, true_positive_rate


def test_scores_that_separate_find_every_member():
    found = membership_inference(torch.arange(10.0, 30.0), torch.arange(5.0))
    assert found.auc.value == 1
    assert {rate: each.value for rate, each in found.tpr_at.items()} == {0.01: 1, 0.001: 1}


def test_few_nonmembers_cannot_place_a_strict_threshold():
    """Of 360 none is expected above the threshold of 0.1 %: how far up it lies nobody knows, however well scores separate."""
    found = true_positive_rate(torch.full((2000,), 9.0), torch.arange(360.0) / 360, 0.001)
    assert (found.value, found.low, found.high) == (1, 0, 1)
    enough = true_positive_rate(torch.full((2000,), 9.0), torch.arange(20000.0) / 20000, 0.001)
    assert enough.low > 0.99


def test_large_samples_give_the_closed_form():
    """Normal scores one deviation apart: Φ(1 − z) of the members lie above the threshold z of the non-members."""
    generator = torch.Generator().manual_seed(0)
    members, others = 1 + torch.randn(400_000, generator=generator), torch.randn(400_000, generator=generator)
    found = membership_inference(members, others)
    assert found.auc.value == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=2e-3)
    for rate, each in found.tpr_at.items():
        expected = norm.sf(norm.isf(rate) - 1)
        assert each.low < expected < each.high
        assert each.value == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_intervals_cover_continuous_and_tied_scores(rate):
    """At least 95 % of 400 cases less 3 standard errors; a tied score's threshold is the least that allows the rate."""
    rng, shift = np.random.default_rng(3), 1.5
    covered = {"continuous": 0, "tied": 0}
    for _ in range(400):
        members, others = rng.normal(shift, 1, 300), rng.normal(0, 1, 250)
        found = true_positive_rate(torch.from_numpy(members), torch.from_numpy(others), rate)
        covered["continuous"] += found.low <= norm.sf(norm.isf(rate) - shift) <= found.high
        found = true_positive_rate(torch.from_numpy(members.round()), torch.from_numpy(others.round()), rate)
        threshold = next(t for t in range(-9, 9) if norm.sf(t + 0.5) <= rate)
        covered["tied"] += found.low <= norm.sf(threshold + 0.5 - shift) <= found.high
    assert min(covered.values()) / 400 > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("bad", [torch.ones(0), torch.tensor([1.0, math.nan]), torch.ones(2, 2)])
def test_scores_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="nonmember_Q must have one dimension"):
        true_positive_rate(torch.ones(3), bad, 0.01)
    with pytest.raises(ValueError, match="rate is 1.0; it must lie strictly between 0 and 1"):
        true_positive_rate(torch.ones(3), torch.ones(3), 1.0)
