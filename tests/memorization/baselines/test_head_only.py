"""The least-squares head-only baseline, and the choice of K."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from rlpheads.memorization.baselines.head_only import (
    CHANCE_MARGIN,
    auto_labels,
    capacity_warning,
    head_only_rla,
    least_squares_rla,
)
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.probes.feature_blocks import GaussianFeatures
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe
from rlpheads.memorization.validation.closed_form_answers import INTERCEPT, LEAST_SQUARES


@pytest.mark.parametrize(("setting", "value"), LEAST_SQUARES.items())
def test_least_squares_known_answers(setting, value):
    assert least_squares_rla(*setting) == pytest.approx(value, abs=1e-4)


@given(st.floats(1.05, 1e4))
def test_least_squares_of_two_labels_is_a_normal_probability(alpha):
    assert least_squares_rla(2, alpha) == pytest.approx(stats.norm.cdf((alpha - 1) ** -0.5), abs=1e-12)


@pytest.mark.parametrize(("num_labels", "alpha"), [(7, 3.3), (1000, 200.0), (10**5, 1668.0), (10**5, 1e5)])
def test_least_squares_equals_adaptive_quadrature(num_labels, alpha):
    lift = (num_labels / (alpha - 1)) ** 0.5

    def integrand(z: float) -> float:
        return float(stats.norm.pdf(z) * np.exp((num_labels - 1) * stats.norm.logcdf(z + lift)))

    value, _ = integrate.quad(integrand, -9, 9, limit=400, epsabs=1e-13, points=[0, 3, 5])
    assert least_squares_rla(num_labels, alpha) == pytest.approx(value, rel=1e-8, abs=1e-11)


@given(st.integers(2, 10**6), st.floats(0.01, 1))
def test_least_squares_interpolates_with_as_many_features_as_samples(num_labels, alpha):
    assert least_squares_rla(num_labels, alpha) == 1


@given(st.integers(2, 10**5), st.floats(1.01, 1e5), st.floats(1.001, 10))
def test_least_squares_falls_towards_chance_with_more_samples(num_labels, alpha, factor):
    fewer, more = least_squares_rla(num_labels, alpha), least_squares_rla(num_labels, alpha * factor)
    assert 1 / num_labels - 1e-12 <= more <= fewer + 1e-12


@pytest.mark.parametrize(("setting", "value"), INTERCEPT.items())
def test_known_answers_with_an_intercept_and_iid_labels(setting, value):
    """The formula for equally frequent labels says .426 and .565 here."""
    assert head_only_rla(*setting) == pytest.approx(value, abs=0.003)


@pytest.mark.parametrize(
    ("num_labels", "num_samples", "num_features", "balance"),
    [(100, 2000, 100, "iid"), (100, 2000, 100, "balanced"), (3, 400, 40, "iid"), (500, 2000, 50, "iid")],
)
def test_the_baseline_is_what_a_fitted_probe_reaches_on_gaussian_features(
    num_labels, num_samples, num_features, balance
):
    accuracies = [
        LeastSquaresProbe()(
            GaussianFeatures(num_samples, num_features, seed),
            label_table(num_samples, num_labels, num_draws=4, seed=seed, split="train", balance=balance),
            num_labels,
        ).accuracy_M.mean()
        for seed in range(4)
    ]
    expected = head_only_rla(num_labels, num_samples, num_features, balance)
    assert np.mean(accuracies) == pytest.approx(expected, abs=0.012)


@given(st.integers(2, 1000), st.integers(1, 300), st.integers(2, 100))
def test_the_baseline_is_an_accuracy_and_one_where_the_head_interpolates(num_labels, num_features, factor):
    assert head_only_rla(num_labels, num_features + 1, num_features) == 1
    assert 0 < head_only_rla(num_labels, factor * num_features + 2, num_features) <= 1


@pytest.mark.parametrize(("num_labels", "alpha"), [(2, 4), (10, 10), (100, 20)])
def test_with_many_samples_a_label_the_baseline_is_the_closed_form(num_labels, alpha):
    limit = least_squares_rla(num_labels, alpha)
    assert head_only_rla(num_labels, 10**8, 10**8 // alpha) == pytest.approx(limit, abs=1e-4)


@settings(max_examples=40)
@given(st.integers(1, 10**7), st.integers(1, 5000))
def test_auto_labels_is_within_the_margin_and_one_more_label_is_not(num_samples, num_features):
    choice = auto_labels(num_samples, num_features)

    def baseline(num_labels: int) -> float:
        return head_only_rla(num_labels, num_samples, num_features)

    assert choice.baseline == baseline(choice.num_labels)
    within = choice.baseline - 1 / choice.num_labels <= CHANCE_MARGIN
    assert within or (choice.num_labels == 2 and choice.warning)
    for more in (1, 2, choice.num_labels, 9 * choice.num_labels):
        num_labels = choice.num_labels + more
        assert num_labels > num_samples or baseline(num_labels) - 1 / num_labels > CHANCE_MARGIN


def test_auto_labels_takes_balanced_labels_for_what_they_are():
    """Equally frequent labels are fitted better, so fewer of them stay within the margin."""
    assert auto_labels(1_280_000, 768, "balanced").num_labels < auto_labels(1_280_000, 768).num_labels


def test_auto_labels_on_imagenet_and_on_digits():
    image_net = auto_labels(1_280_000, 768)
    assert image_net.warning is None
    assert image_net.num_labels > 7000  # 6,988 by the formula for equally frequent labels
    assert image_net.baseline == pytest.approx(0.05 + 1 / image_net.num_labels, abs=1e-4)
    digits = auto_labels(1437, 192)
    assert digits.num_labels == 2
    assert digits.baseline == pytest.approx(0.65, abs=0.005)
    assert "no number of labels" in digits.warning


def test_warning_where_the_head_alone_fits_everything():
    assert "fits every one of 100000 random labels" in capacity_warning(10**5, 1_280_000, 768)
    assert capacity_warning(1000, 1_280_000, 768) is None
    assert "2 samples per feature" in capacity_warning(2, 100, 192)
    assert capacity_warning(10, 1437, 192) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: least_squares_rla(1, 3.0), "num_labels is 1"),
        (lambda: least_squares_rla(2, 0.0), "alpha"),
        (lambda: least_squares_rla(2, float("nan")), "alpha"),
        (lambda: head_only_rla(2, 0, 3), "num_samples is 0"),
        (lambda: head_only_rla(2, 10, 3, "per_class"), "unknown balance 'per_class'"),
        (lambda: auto_labels(0, 10), "num_samples is 0"),
        (lambda: capacity_warning(2, 10, 0), "num_features is 0"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
