"""Paired differences and how many of them were looked at: p-values that hold for all comparisons of a table together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_finite
from rlpheads.memorization.measures.intervals import as_float64


def paired_p_value(differences_S: Tensor) -> float:
    """Two-sided p-value of a mean difference of 0, by Student's t over pairs (S,); NaN for fewer than two.

    Differences that are all alike have no error: 1 where they are 0, 0 where they are not.
    """
    differences = as_float64(differences_S)
    if differences.dim() != 1:
        raise ValueError(f"differences_S must be (S,); given {tuple(differences.shape)}")
    check_finite("differences_S", differences)
    if len(differences) < 2:
        return math.nan
    if bool((differences == differences[0]).all()):
        return float(differences[0] == 0)
    return float(stats.ttest_1samp(differences.numpy(), 0.0).pvalue)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, so that one below .05 is by chance in at most one of twenty such families.

    NaN stays NaN and is not counted.

    Raises:
        ValueError: a value outside [0, 1].

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    values = torch.tensor(p_values, dtype=torch.float64)
    known = torch.nonzero(~values.isnan())[:, 0]
    if bool(((values[known] < 0) | (values[known] > 1)).any()):
        raise ValueError(f"p-values lie in [0, 1]; given {p_values}")
    order = known[values[known].argsort(stable=True)]
    remaining = torch.arange(len(order), 0, -1)
    adjusted = values.clone()
    adjusted[order] = (values[order] * remaining).clamp(max=1.0).cummax(0).values if len(order) else values[order]
    return adjusted.tolist()
