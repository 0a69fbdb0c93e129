"""Comparison at an equal level: what a measure is where another one, such as the audit heads' accuracy, has a given value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def value_at_level(level: float, points: Sequence[tuple[float, float]]) -> float:
    """Interpolate a measure linearly between the two points whose levels enclose `level`; NaN where none do.

    Args:
        level: the common level.
        points: (level, measure) of networks along one path, such as one regulariser at growing λ; in any order. Points of
            one level count as their mean.

    Raises:
        ValueError: a number is not finite.
    """
    if not math.isfinite(level) or not np.isfinite(np.asarray(points, dtype=float)).all():
        raise ValueError(f"level and points must be finite; given {level} and {list(points)}")
    by_level: dict[float, list[float]] = {}
    for own_level, value in points:
        by_level.setdefault(own_level, []).append(value)
    levels = sorted(by_level)
    if not levels or not levels[0] <= level <= levels[-1]:
        return math.nan
    return float(np.interp(level, levels, [float(np.mean(by_level[each])) for each in levels]))


def common_level(paths: Sequence[Sequence[float]]) -> float:
    """Return the level in the middle of what every path passes through; NaN where they share none.

    Args:
        paths: the levels of the points of each path, such as the audit heads' accuracy at each λ of one regulariser.
    """
    low, high = max(min(levels) for levels in paths), min(max(levels) for levels in paths)
    return (low + high) / 2 if low < high else math.nan
