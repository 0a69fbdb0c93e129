"""Draws pooled as one binomial count, and the test that says when they may not be."""

import math

import pytest
import torch

from rlpheads.memorization.measures.intervals import draw_interval, wilson_interval
from rlpheads.memorization.measures.pooled_draws import draw_heterogeneity, pool_draws
from rlpheads.memorization.validation import coverage


def width(interval) -> float:
    return float(interval.high - interval.low)


def test_two_equal_draws_say_more_than_one():
    """Student's t with one degree of freedom said less: an interval of 12.7 standard errors each way."""
    one, two = pool_draws(torch.tensor([310]), 1000), pool_draws(torch.tensor([310, 296]), 1000)
    assert two.is_pooled
    assert two.accuracy == 0.303
    assert width(two.interval) == pytest.approx(width(one.interval) / math.sqrt(2), rel=0.01)
    assert width(two.interval) < width(draw_interval(torch.tensor([0.310, 0.296])))
    assert two.interval == wilson_interval(606, 2000)


def test_one_draw_has_wilsons_interval():
    found = pool_draws(torch.tensor([30]), 100)
    assert found.interval == wilson_interval(30, 100)
    assert found.heterogeneity == 1


def test_draws_that_differ_are_not_pooled():
    found = pool_draws(torch.tensor([100, 200, 150]), 1000)
    across = draw_interval(torch.tensor([0.1, 0.2, 0.15]))
    assert not found.is_pooled
    assert found.heterogeneity < 1e-6
    assert float(found.interval.high) == pytest.approx(float(across.high))
    assert float(found.interval.low) == pytest.approx(float(across.low))


def test_ends_stay_in_the_unit_interval():
    found = pool_draws(torch.tensor([0, 20]), 20)
    assert (float(found.interval.low), float(found.interval.high)) == (0, 1)


@pytest.mark.parametrize("hits", [[0, 0, 0], [50, 50, 50]])
def test_draws_without_any_or_with_every_hit_are_alike(hits):
    assert pool_draws(torch.tensor(hits), 50).is_pooled


def test_heterogeneity_is_pearsons_statistic():
    """Counts 40 and 60 of 100: χ² = 8 with one degree of freedom."""
    assert draw_heterogeneity(torch.tensor([40, 60]), 100) == pytest.approx(0.0046777, rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("num_draws", [1, 2, 4])
def test_the_pooled_interval_covers(num_draws):
    assert 0.93 <= coverage.pooled_coverage(num_draws) <= 0.97


@pytest.mark.parametrize(
    "hits", [torch.tensor(3.0), torch.tensor([]), torch.tensor([math.nan, 3]), torch.tensor([0.3])]
)
def test_what_are_no_counts_of_draws_is_refused(hits):
    with pytest.raises(ValueError, match="num_hits"):
        pool_draws(hits, 10)
