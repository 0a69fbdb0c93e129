"""Intervals: what they contain, how they shrink, and how often they cover."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlpheads.memorization.measures.intervals import (
    binomial_bounds,
    cluster_bootstrap,
    draw_interval,
    mcdiarmid_half_width,
    wilson_interval,
)
from rlpheads.memorization.validation import coverage

COUNTS = st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
LEVELS = st.floats(0.5, 0.9999)


@given(COUNTS, LEVELS)
def test_wilson_contains_the_estimate_and_equals_scipy(count, level):
    hits, num_samples = count
    interval = wilson_interval(hits, num_samples, level)
    truth = stats.binomtest(hits, num_samples).proportion_ci(level, method="wilson")
    assert interval.contains(hits / num_samples)
    assert float(interval.low) == pytest.approx(truth.low, abs=1e-12)
    assert float(interval.high) == pytest.approx(truth.high, abs=1e-12)


def test_wilson_at_no_hit_and_all_hits_stays_in_the_unit_interval():
    interval = wilson_interval(torch.tensor([0, 50]), 50)
    assert interval.low[0] == 0
    assert interval.high[1] == 1
    assert 0 < interval.high[0] < interval.low[1] < 1


def test_wilson_keeps_the_shape_of_taps_and_draws():
    hits_TM = torch.tensor([[3, 5], [7, 9]])
    interval = wilson_interval(hits_TM, 10)
    assert interval.low.shape == interval.high.shape == (2, 2)
    assert interval.contains(hits_TM / 10).all()


@given(COUNTS)
def test_a_higher_level_gives_a_wider_interval(count):
    narrow, wide = (wilson_interval(*count, level) for level in (0.9, 0.99))
    assert wide.low <= narrow.low
    assert wide.high >= narrow.high


@given(st.integers(1, 10**7), st.integers(2, 10**5), st.sampled_from([0.95, 1 - 1e-4]))
def test_binomial_bounds_leave_each_tail_at_most_half_the_error_and_are_the_tightest(num_samples, num_labels, level):
    bounds = binomial_bounds(num_samples, num_labels, level)
    low, high = (round(float(end) * num_samples) for end in (bounds.low, bounds.high))
    null, tail = stats.binom(num_samples, 1 / num_labels), (1 - level) / 2
    assert null.cdf(low - 1) <= tail * (1 + 1e-9)
    assert null.sf(high) <= tail * (1 + 1e-9)
    assert null.cdf(low) > tail * (1 - 1e-9)
    assert high == 0 or null.sf(high - 1) > tail * (1 - 1e-9)


def test_binomial_bounds_contain_their_own_ends_computed_as_an_accuracy():
    bounds = binomial_bounds(360, 10)
    hits = torch.arange(361)
    inside = bounds.contains(hits.double() / 360)
    assert bounds.low * 360 == hits[inside].min()
    assert bounds.high * 360 == hits[inside].max()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_draw_interval_contains_the_mean_and_equals_scipy(values):
    interval = draw_interval(torch.tensor(values, dtype=torch.float64))
    mean, error = np.mean(values), stats.sem(values)
    assert interval.low - 1e-12 <= mean <= interval.high + 1e-12
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
        assert [float(interval.low), float(interval.high)] == pytest.approx([low, high])


def test_draw_interval_reduces_the_dimension_of_the_draws():
    values_TM = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    last, first = draw_interval(values_TM), draw_interval(values_TM.T, dim=0)
    assert last.low.shape == (4,)
    torch.testing.assert_close(last.low, first.low)


@pytest.mark.parametrize("make", [draw_interval, cluster_bootstrap])
@pytest.mark.parametrize("values", [torch.tensor([0.3]), torch.tensor(0.3), torch.zeros(5, 1)])
def test_one_draw_has_no_interval_across_draws(make, values):
    with pytest.raises(ValueError, match=r"at least 2 draws; 1 given.*wilson_interval"):
        make(values)


def test_bootstrap_is_reproducible_and_depends_on_its_seed():
    values_M = torch.rand(12, generator=torch.Generator().manual_seed(0))
    first, again, other = (cluster_bootstrap(values_M, seed=seed, num_resamples=200) for seed in (1, 1, 2))
    assert first.low == again.low
    assert first.low != other.low


def test_bootstrap_keeps_what_a_draw_shares_together():
    """Samples of a draw that move as one are no more evidence than the draw itself."""
    per_draw_M = torch.rand(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    repeated_MN = per_draw_M.unsqueeze(1).expand(10, 500)
    few = cluster_bootstrap(per_draw_M, num_resamples=500)
    many = cluster_bootstrap(repeated_MN, lambda values: values.mean(), dim=0, num_resamples=500)
    assert float(many.low) == pytest.approx(float(few.low))
    assert float(many.high) == pytest.approx(float(few.high))


def test_bootstrap_of_a_statistic_that_is_no_mean():
    values_M = torch.arange(21.0)
    interval = cluster_bootstrap(values_M, lambda values: values.median(), num_resamples=500)
    assert interval.contains(10.0)
    assert interval.low >= 0
    assert interval.high <= 20


@given(st.integers(1, 10**6), st.integers(1, 50), st.integers(2, 10**5))
def test_mcdiarmid_shrinks_with_the_root_of_samples_and_draws(num_samples, num_draws, num_labels):
    width = mcdiarmid_half_width(num_samples, num_draws, num_labels)
    assert mcdiarmid_half_width(4 * num_samples, num_draws, num_labels) == pytest.approx(width / 2)
    assert mcdiarmid_half_width(num_samples, 4 * num_draws, num_labels) == pytest.approx(width / 2)


def test_mcdiarmid_known_value():
    assert mcdiarmid_half_width(1000, 1, 2, error=0.05) == pytest.approx(2 * math.sqrt(math.log(40) / 2000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(0, 0), "num_samples is 0"),
        (lambda: wilson_interval(11, 10), "between 0 and num_samples = 10"),
        (lambda: wilson_interval(1, 10, level=1.0), "level is 1.0"),
        (lambda: binomial_bounds(0, 10), "num_samples is 0"),
        (lambda: binomial_bounds(10, 1), "num_labels is 1"),
        (lambda: mcdiarmid_half_width(10, 1, 2, error=0.0), "error is 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("num_samples", "accuracy"), [(100, 0.5), (1000, 0.3), (10_000, 0.01)])
def test_wilson_covers(num_samples, accuracy):
    assert 0.93 <= coverage.wilson_coverage(accuracy, num_samples) <= 0.97


@pytest.mark.parametrize("num_draws", [2, 3, 5, 10])
def test_the_interval_across_draws_covers(num_draws):
    assert 0.93 <= coverage.draw_coverage(num_draws) <= 0.97


@pytest.mark.parametrize("num_draws", [10, 40])
def test_the_bootstrap_covers_from_ten_draws_on(num_draws):
    assert 0.93 <= coverage.bootstrap_coverage(num_draws) <= 0.97


def test_one_accuracys_interval_does_not_cover_the_scatter_between_draws():
    """The negative control: Wilson knows nothing of training, so the coverage simulation must be able to fail."""
    accuracy_CM, truth = coverage.draw_accuracies(2, 2000, seed=0)
    hits_C = accuracy_CM[:, 0] * coverage.NUM_SAMPLES
    assert wilson_interval(hits_C, coverage.NUM_SAMPLES).contains(truth).double().mean() < 0.9
