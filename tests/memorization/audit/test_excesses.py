"""Intervals of the excesses: Student's t, the null interval, and their coverage."""

import numpy as np
import pytest
import torch
from audit_problems import K, gaussian, table

from rlpheads.memorization.audit.excesses import label_excess, membership_excess
from rlpheads.memorization.measures.intervals import draw_interval
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe


def test_the_null_interval_of_one_own_draw_is_the_prediction_interval():
    fresh = torch.tensor([0.30, 0.32, 0.28, 0.31, 0.29])
    excess = label_excess(torch.tensor([0.40]), fresh)
    scatter = 2.7764451 * float(fresh.double().std())
    assert excess.value == pytest.approx(0.10, abs=1e-7)
    assert excess.luck == pytest.approx(scatter * (1 + 1 / 5) ** 0.5, rel=1e-5)
    assert excess.half_width == pytest.approx(scatter * (1 / 5) ** 0.5, rel=1e-5)
    assert excess.is_positive
    below = label_excess(torch.tensor([0.29]), fresh)
    assert not below.is_negative  # its interval, which is of these labels alone, may leave out 0 all the same


def test_the_null_interval_of_several_own_draws_is_the_two_sample_t_test():
    from scipy import stats

    own, fresh = torch.tensor([0.33, 0.36, 0.34]), torch.tensor([0.30, 0.32, 0.28, 0.31])
    expected = stats.ttest_ind(own.double(), fresh.double()).confidence_interval(0.9)
    excess = label_excess(own, fresh, 0.9)
    assert excess.luck == pytest.approx((expected.high - expected.low) / 2)


def test_membership_excess_is_the_interval_of_the_differences():
    members, heldout = torch.tensor([0.5, 0.6, 0.55, 0.52]), torch.tensor([0.4, 0.45, 0.5, 0.41])
    excess, expected = membership_excess(members, heldout), draw_interval(members - heldout)
    assert (excess.low, excess.high) == pytest.approx((float(expected.low), float(expected.high)))
    with pytest.raises(ValueError, match="equally many"):
        membership_excess(members, heldout[:3])


@pytest.mark.long
@pytest.mark.parametrize("num_own", [1, 3])
def test_label_excess_covers_on_real_fits(num_own):
    """1,000 audits of features that are independent of the labels; the error of the share is .007."""
    num_draws = num_own + 5
    accuracy = LeastSquaresProbe()(gaussian(200, 20), table(200, 1000 * num_draws), K).accuracy_M.view(1000, num_draws)
    excesses = [label_excess(row[:num_own], row[num_own:]) for row in accuracy]
    covered = np.mean([abs(excess.value) <= excess.luck for excess in excesses])
    assert 0.93 <= covered <= 0.97
