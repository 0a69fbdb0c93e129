"""Split-half reliability: known answers of a signal in noise, and of noise alone."""

import math

import numpy as np
import pytest

from rlpheads.memorization.measures.reliability import mean_reliability, rank_correlation, stepped_up


def parts(signal: float, num_parts: int, num_samples: int = 20_000) -> np.ndarray:
    random = np.random.default_rng(1)
    return signal * random.standard_normal(num_samples) + random.standard_normal((num_parts, num_samples))


@pytest.mark.parametrize(("signal", "num_parts"), [(1.0, 2), (1.0, 8), (0.5, 4)])
def test_a_signal_in_noise_has_the_reliability_of_its_variance(signal, num_parts):
    """P parts of variance s² + 1 have the reliability s²/(s² + 1/P); ranks of normal values lose little of it."""
    found = mean_reliability(parts(signal, num_parts), "draws")
    assert found.value == pytest.approx(signal**2 / (signal**2 + 1 / num_parts), abs=0.03)
    assert found.value < found.high


def test_noise_is_not_resolvable_and_asks_for_more_draws():
    found = mean_reliability(parts(0.0, 4), "draws")
    assert abs(found.value) < 0.05
    assert not found.is_resolvable
    assert found.needed > 40
    assert found.describe().startswith(f"not resolvable: needs {found.needed} draws or more (split-half reliability ")


def test_the_draws_that_are_asked_for_do_resolve():
    few = mean_reliability(parts(0.3, 2), "draws")
    assert not few.is_resolvable
    assert mean_reliability(parts(0.3, math.ceil(1.3 * few.needed)), "draws").is_resolvable


def test_one_part_says_nothing_and_asks_for_what_is_known_to_be_needed():
    found = mean_reliability(parts(5.0, 1), "draws", least_needed=7)
    assert math.isnan(found.value)
    assert found.describe() == "not resolvable: needs 7 draws or more"


def test_samples_without_a_value_and_constants_rank_nothing():
    values = parts(1.0, 2, 1000)
    with_gap = np.concatenate([values, np.full((2, 50), np.nan)], axis=1)
    assert mean_reliability(with_gap, "draws") == mean_reliability(values, "draws")
    assert mean_reliability(np.ones((4, 100)), "ledgers").value == 0
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


def test_halves_that_agree_are_reliable():
    assert stepped_up(0.8, 1000, 6, "ledgers").describe() == "split-half reliability 0.89 over 6 ledgers"
