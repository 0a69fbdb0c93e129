"""Comparison at an equal level: interpolation by hand, and where there is nothing to compare."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpheads.memorization.measures.matched import common_level, value_at_level

POINTS = [(0.30, 0.90), (0.20, 0.80), (0.10, 0.50)]


def test_interpolation_by_hand():
    assert value_at_level(0.25, POINTS) == pytest.approx(0.85)
    assert value_at_level(0.12, POINTS) == pytest.approx(0.56)
    assert value_at_level(0.30, POINTS) == 0.90
    assert math.isnan(value_at_level(0.31, POINTS))
    assert math.isnan(value_at_level(0.2, []))
    assert value_at_level(0.2, [(0.2, 1.0), (0.2, 3.0)]) == 2


@given(st.floats(0, 1), st.lists(st.tuples(st.floats(0, 1), st.floats(-5, 5)), min_size=1, max_size=9))
def test_it_never_leaves_the_points(level, points):
    found = value_at_level(level, points)
    assert math.isnan(found) or min(y for _, y in points) - 1e-9 <= found <= max(y for _, y in points) + 1e-9


def test_the_common_level_is_one_that_all_reach():
    assert common_level([[0.3, 0.1], [0.28, 0.2]]) == pytest.approx(0.24)
    assert math.isnan(common_level([[0.3, 0.2], [0.1, 0.15]]))


@pytest.mark.parametrize("points", [[(math.nan, 1.0)], [(0.1, math.inf)]])
def test_numbers_are_finite(points):
    with pytest.raises(ValueError, match="must be finite"):
        value_at_level(0.1, points)
