"""How many fresh draws a least-squares audit takes: as many as a wanted half-width needs, within a stated cost."""

from __future__ import annotations

import math

from scipy import stats

from rlpheads.memorization.arguments import check_count, check_open_fraction
from rlpheads.memorization.baselines.head_only import head_only_rla

DEFAULT_DRAWS = 8
"""Draws of probes that are fitted draw by draw, and the fewest of least squares, whose draws share one factorisation."""
HALF_WIDTH = 0.005
"""Wanted half-width of the membership excess: half a percentage point."""
MAX_PRODUCTS = 2 * 10**11
"""Multiplications that a tap's draws may cost: 5 to 20 seconds of two cores. 200 draws of n = 3,000 cost about 1 second."""
MAX_NUMBERS = 2**26
"""Numbers of the fitted weights of all draws: 512 MiB in fp64."""


def least_squares_draws(
    num_samples: int, num_equal: int, num_features: int, num_labels: int, level: float = 0.95
) -> int:
    """Return the fresh draws F of one tap: at least 8, however wide or costly.

    The half-width of the membership excess over F draws is about z·√(2a(1−a)/(E·F)), a the head-only accuracy at E rows: an
    accuracy's variance, twice, which leverages only lower. F is what makes it `HALF_WIDTH`, cut where the draws would cost
    more than `MAX_PRODUCTS` or hold more than `MAX_NUMBERS`.

    Args:
        num_samples: N, training samples that every draw is fitted to.
        num_equal: E, rows on either side of the membership excess.
        num_features: D of the widest tap.
        num_labels: K.
        level: coverage of the interval.
    """
    num_samples, num_equal = check_count("num_samples", num_samples), check_count("num_equal", num_equal)
    check_open_fraction("level", level)
    accuracy = head_only_rla(num_labels, num_equal, num_features)
    z = float(stats.norm.isf((1 - level) / 2))
    wanted = math.ceil((z / HALF_WIDTH) ** 2 * 2 * accuracy * (1 - accuracy) / num_equal)
    products = (num_samples + 2 * num_equal) * num_features * num_labels
    affordable = min(MAX_PRODUCTS // products, MAX_NUMBERS // (num_features * num_labels))
    return max(DEFAULT_DRAWS, min(wanted, affordable))
