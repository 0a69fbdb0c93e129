"""Spearman's rank correlation with its interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_no_nan, check_open_fraction
from rlpheads.memorization.measures.intervals import as_float64


class Correlation(NamedTuple):
    """Spearman's `rho`, the ends of its interval and its two-sided p-value; all NaN where one side is constant or empty."""

    rho: float
    low: float
    high: float
    p_value: float


def spearman(first_N: Tensor, second_N: Tensor, level: float = 0.95) -> Correlation:
    """Rank correlation of two measures of the same independent samples, (N,) each.

    The interval is Fisher's of atanh ρ with the variance (1 + ρ²/2)/(N − 3); [-1, 1] for fewer than four samples.

    Raises:
        ValueError: other shapes, or a value is NaN.

    Source: Bonett and Wright, Psychometrika 65 (2000) 23-28.
    """
    check_open_fraction("level", level)
    first, second = as_float64(first_N), as_float64(second_N)
    if first.dim() != 1 or first.shape != second.shape:
        raise ValueError(f"first_N and second_N must be (N,); given {tuple(first.shape)} and {tuple(second.shape)}")
    check_no_nan("first_N", first)
    check_no_nan("second_N", second)
    if len(np.unique(first.numpy())) < 2 or len(np.unique(second.numpy())) < 2:
        return Correlation(math.nan, math.nan, math.nan, math.nan)
    found = stats.spearmanr(first.numpy(), second.numpy())
    rho, num_samples = float(found.statistic), len(first)
    if num_samples < 4:
        return Correlation(rho, -1.0, 1.0, float(found.pvalue))
    half = float(stats.norm.isf((1 - level) / 2)) * math.sqrt((1 + rho * rho / 2) / (num_samples - 3))
    centre = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, rho)))
    return Correlation(rho, math.tanh(centre - half), math.tanh(centre + half), float(found.pvalue))
