"""Quantiles of any number of values, on any device; torch.quantile refuses more than 2^24 of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def quantiles(values_N: Tensor, levels: Sequence[float]) -> Tensor:
    """Return the quantiles of values (..., N): fp64 (Q, ...) on their device, linear between order statistics.

    Args:
        values_N: floats, none of them NaN; N ≥ 1.
        levels: Q levels in [0, 1].

    Raises:
        ValueError: a level outside [0, 1], or no values.
    """
    if not all(0 <= level <= 1 for level in levels) or not values_N.shape[-1]:
        raise ValueError(f"quantiles need levels in [0, 1] and at least one value; given levels {list(levels)}")
    ordered_N = values_N.sort(-1).values
    position_Q = torch.tensor(levels, dtype=torch.float64, device=ordered_N.device) * (ordered_N.shape[-1] - 1)
    below_Q, above_Q = position_Q.floor().long(), position_Q.ceil().long()
    below, above = (ordered_N[..., index_Q].double() for index_Q in (below_Q, above_Q))
    return torch.lerp(below, above, position_Q - below_Q).movedim(-1, 0)
