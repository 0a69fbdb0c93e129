"""Enumerations against closed forms."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.memorization.measures import exact


@pytest.mark.long
@pytest.mark.parametrize("num_samples", [1, 2, 5, 10])
def test_constants_closed_form_is_the_enumeration(num_samples):
    both_FN = torch.tensor([[1.0], [-1.0]]).expand(2, num_samples)
    assert exact.rademacher_complexity_of_constants(num_samples) == pytest.approx(
        exact.rademacher_complexity(both_FN), abs=1e-14
    )


def test_known_values():
    assert exact.rademacher_complexity_of_constants(100) == pytest.approx(0.0795892, abs=5e-8)
    assert exact.rademacher_complexity(exact.threshold_predictions(12)) == 0.4892578125


def test_a_class_of_all_sign_vectors_fits_everything_and_one_function_nothing():
    signs_FN = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)))
    assert exact.rademacher_complexity(signs_FN) == 1
    assert exact.rademacher_complexity(signs_FN[:1]) == 0


def test_thresholds_are_different_and_change_sign_once():
    rows_FN = exact.threshold_predictions(7)
    assert len(rows_FN.unique(dim=0)) == 14
    assert ((rows_FN[:, 1:] != rows_FN[:, :-1]).sum(1) <= 1).all()


@pytest.mark.long
@given(st.integers(1, 60), st.integers(1, 60))
def test_cover_counts_everything_up_to_the_features_and_half_at_twice_as_many(num_samples, num_features):
    probability = exact.separable_probability(num_samples, num_features)
    assert 0 <= probability <= 1
    assert probability >= exact.separable_probability(num_samples + 1, num_features)
    if num_samples <= num_features:
        assert probability == 1
    assert exact.separable_probability(2 * num_features, num_features) == pytest.approx(0.5)


def test_too_large_enumerations_are_refused():
    with pytest.raises(ValueError, match="too many to enumerate"):
        exact.rademacher_complexity(torch.ones(2, 30))
    with pytest.raises(ValueError, match="too many to enumerate"):
        exact.mean_e_value(torch.full((20, 3), 1 / 3))
    with pytest.raises(ValueError, match="shape"):
        exact.rademacher_complexity(torch.ones(3))
    with pytest.raises(ValueError, match="num_features is 0"):
        exact.separable_probability(3, 0)
