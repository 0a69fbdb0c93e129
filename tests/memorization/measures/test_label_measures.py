"""Accuracies, the Rademacher estimate, bits, margins and calibration."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.memorization.measures import exact
from rlpheads.memorization.measures.label_measures import (
    expected_calibration_error,
    margin_summary,
    rademacher_estimate,
    random_label_accuracy,
    stored_bits,
)


def test_accuracy_of_taps_and_draws_is_fp64_over_the_samples():
    hit_TMN = torch.tensor([[[1, 0, 0], [1, 1, 1]]], dtype=torch.bool)
    accuracy_TM = random_label_accuracy(hit_TMN)
    assert accuracy_TM.dtype == torch.float64
    torch.testing.assert_close(accuracy_TM, torch.tensor([[1 / 3, 1.0]], dtype=torch.float64))


def test_accuracy_counts_seen_samples_only():
    hit_N, seen_N = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0], dtype=torch.bool)
    assert random_label_accuracy(hit_N, seen_N) == 0.5


def test_accuracy_over_many_samples_loses_no_hit():
    hit_N = torch.ones(2**24 + 3, dtype=torch.uint8)
    hit_N[0] = 0
    assert random_label_accuracy(hit_N) == (2**24 + 2) / (2**24 + 3)


@pytest.mark.parametrize("measure", [random_label_accuracy, margin_summary])
def test_no_samples_is_an_error(measure):
    with pytest.raises(ValueError, match="no samples"):
        measure(torch.zeros(3, 0))
    with pytest.raises(ValueError, match="no samples"):
        measure(torch.zeros(4), torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="seen_N has shape"):
        measure(torch.zeros(4), torch.ones(3, dtype=torch.bool))


@given(st.integers(2, 10**5), st.floats(0, 1))
def test_rademacher_estimate_is_zero_at_chance_one_at_all_hits_and_linear(num_labels, accuracy):
    assert float(rademacher_estimate(1 / num_labels, num_labels)) == pytest.approx(0, abs=1e-12)
    assert rademacher_estimate(1.0, num_labels) == 1
    expected = (accuracy - 1 / num_labels) / (1 - 1 / num_labels)
    assert float(rademacher_estimate(accuracy, num_labels)) == pytest.approx(expected, abs=1e-12)


def test_rademacher_estimate_of_two_labels_is_the_correlation_with_signs():
    signs_N, predicted_N = (torch.randint(2, (50,), generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (0, 1))
    accuracy = random_label_accuracy(signs_N == predicted_N)
    assert float(rademacher_estimate(accuracy, 2)) == pytest.approx(float((signs_N * predicted_N).double().mean()))


@pytest.mark.parametrize("num_labels", [3, 10])
def test_rademacher_estimate_is_the_correlation_with_simplex_codes(num_labels):
    centred_KK = torch.eye(num_labels, dtype=torch.float64) - 1 / num_labels
    codes_KK = centred_KK / centred_KK.norm(dim=1, keepdim=True)
    labels_N, predicted_N = (
        torch.randint(num_labels, (200,), generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    correlation = (codes_KK[labels_N] * codes_KK[predicted_N]).sum(1).mean()
    estimate = rademacher_estimate(random_label_accuracy(labels_N == predicted_N), num_labels)
    torch.testing.assert_close(estimate, correlation)


def test_bits_at_chance_and_at_a_perfect_fit():
    chance = stored_bits(torch.zeros(100), num_labels=10, num_features=5)
    assert chance.total == 0
    assert chance.p_bound == 1
    full = stored_bits(torch.full((100,), math.log2(10), dtype=torch.float64), num_labels=10, num_features=5)
    assert float(full.per_sample) == pytest.approx(math.log2(10))
    assert float(full.per_head_parameter) == pytest.approx(100 * math.log2(10) / (5 * 9))
    assert float(full.p_bound) == pytest.approx(10.0**-100)
    assert full.log2_e_value == full.total


def test_bits_per_network_parameter_are_given_for_joint_runs_only():
    assert stored_bits(torch.ones(6), 4, 8).per_network_parameter is None
    assert stored_bits(torch.ones(6), 4, 8, num_network_parameters=12).per_network_parameter == 0.5
    with pytest.raises(ValueError, match="num_network_parameters is 0"):
        stored_bits(torch.ones(6), 4, 8, num_network_parameters=0)


def test_bits_keep_the_leading_shape_and_skip_unseen_samples():
    bits_TMN = torch.arange(12.0).view(2, 2, 3)
    bits = stored_bits(bits_TMN, 4096, 8, torch.tensor([True, False, True]))
    torch.testing.assert_close(bits.total, torch.tensor([[2.0, 8.0], [14.0, 20.0]], dtype=torch.float64))


def test_a_label_of_probability_zero_gives_no_evidence():
    bits = stored_bits(torch.tensor([1.0, -math.inf]), 2, 1)
    assert bits.total == -math.inf
    assert bits.p_bound == 1


@given(st.integers(1, 6), st.integers(2, 4), st.integers(0, 10**6), st.floats(0.1, 8))
def test_the_e_value_of_any_label_independent_prediction_has_mean_one(num_samples, num_labels, seed, sharpness):
    generator = torch.Generator().manual_seed(seed)
    logits_NK = sharpness * torch.randn(num_samples, num_labels, generator=generator, dtype=torch.float64)
    assert exact.mean_e_value(logits_NK.softmax(1)) == pytest.approx(1, abs=1e-12)


@given(st.floats(0.001, 0.5), st.integers(0, 1000))
def test_the_e_values_bound_on_p_holds_by_enumeration(error, seed):
    probability_NK = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)
    labels_SN = torch.cartesian_prod(*[torch.arange(2)] * 8)
    bits_SN = 1 + torch.log2(probability_NK)[torch.arange(8), labels_SN]
    assert (stored_bits(bits_SN, 2, 1).p_bound <= error).double().mean() <= error


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40))
def test_margins_summary_equals_numpy(margins):
    summary = margin_summary(torch.tensor(margins, dtype=torch.float64))
    assert float(summary.mean) == pytest.approx(np.mean(margins), abs=1e-9)
    assert summary.quantiles.tolist() == pytest.approx(np.quantile(margins, [0.05, 0.25, 0.5, 0.75, 0.95]), abs=1e-9)
    assert float(summary.fraction_positive) == pytest.approx(np.mean(np.array(margins) > 0))


def test_margin_quantiles_come_first():
    assert margin_summary(torch.randn(2, 3, 40), levels=(0.1, 0.9)).quantiles.shape == (2, 2, 3)


def test_calibration_error_of_a_calibrated_and_of_an_overconfident_predictor():
    confidence_N = torch.full((10,), 0.7)
    hit_N = torch.tensor([True] * 7 + [False] * 3)
    assert float(expected_calibration_error(confidence_N, hit_N)) == pytest.approx(0, abs=1e-7)
    assert float(expected_calibration_error(torch.ones(10), hit_N)) == pytest.approx(0.3)


def test_calibration_error_weighs_the_bins_by_their_samples():
    confidence_N = torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=torch.float64)
    hit_N = torch.tensor([False, False, True, True])
    assert float(expected_calibration_error(confidence_N, hit_N, num_bins=2)) == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("confidence", "hit", "message"),
    [
        (torch.tensor([1.5]), torch.tensor([True]), "must lie in"),
        (torch.tensor([0.5, 0.5]), torch.tensor([True]), "must be"),
        (torch.zeros(0), torch.zeros(0), "N ≥ 1"),
    ],
)
def test_calibration_error_refuses(confidence, hit, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(confidence, hit)
