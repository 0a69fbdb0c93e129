"""The capacity of a linear head: known values, a simulation and an independent integral."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.memorization.baselines.capacity import capacity, lowered_distribution
from rlpheads.memorization.validation.capacity_check import capacity_by_integral
from rlpheads.memorization.validation.closed_form_answers import CAPACITY
from rlpheads.memorization.validation.simulated_answers import simulated_capacity


@pytest.mark.parametrize(("num_labels", "known"), CAPACITY.items())
def test_capacity_known_answers(num_labels, known):
    value, tolerance = known
    assert capacity(num_labels) == pytest.approx(value, abs=tolerance)


def test_capacity_of_two_and_three_labels_is_exact():
    """K=2: one label is lowered half of the time. K=3: cones of 180, 60 and 120 degrees."""
    assert capacity(2) == pytest.approx(2, rel=1e-10)
    assert lowered_distribution(3) == pytest.approx([1 / 3, 1 / 2, 1 / 6], abs=1e-10)
    assert capacity(3) == pytest.approx(2 / (1 / 2 + 2 / 6), rel=1e-10)


@pytest.mark.parametrize("num_labels", [2, 5, 100, 10**5, 10**9])
def test_the_number_of_lowered_labels_is_a_distribution(num_labels):
    assert lowered_distribution(num_labels).sum() == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("num_labels", [10, 10**5])
def test_capacity_agrees_with_a_simulated_projection(num_labels):
    value, error = simulated_capacity(num_labels, 10_000, seed=0)
    assert value == pytest.approx(capacity(num_labels), abs=3 * error)
    assert error < 0.02 * value


@pytest.mark.long
@pytest.mark.parametrize("num_labels", [2, 3, 17, 1000, 10**5])
def test_capacity_agrees_with_the_characteristic_function_integral(num_labels):
    assert capacity_by_integral(num_labels) == pytest.approx(capacity(num_labels), rel=1e-9)


@pytest.mark.long
@given(st.integers(2, 5000))
def test_capacity_grows_with_the_labels_but_slower(num_labels):
    assert 1 < capacity(num_labels + 1) / capacity(num_labels) < (num_labels + 1) / num_labels


def test_one_label_is_refused():
    with pytest.raises(ValueError, match="num_labels is 1"):
        capacity(1)
