"""ROC AUC of every per-sample measure for canaries against ordinary samples, and its correlation with the copies.

A canary is a training sample that was made hard or easy on purpose: its class is wrong, its image stands in the split
several times. How well a measure separates canaries from the rest says how far it can be trusted on other samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.memorization.arguments import check_open_fraction
from rlpheads.memorization.measures.intervals import as_float64, effective_wilson_interval
from rlpheads.memorization.measures.rank_correlation import Correlation, spearman
from rlpheads.memorization.records.canary_file import Canaries, CanaryError

REPEATED = "repeated"
"""The kind whose copies are counted."""


class CanaryAUC(NamedTuple):
    """Area under the ROC curve of a measure for one kind of canary against ordinary samples, with its interval.

    `auc` is the probability that a canary's value is above an ordinary sample's, ties counting half: .5 is
    chance, and 0 separates as well as 1. `low` and `high` are the ends of its interval.
    """

    auc: float
    low: float
    high: float


def canary_auc(
    canary_P: Tensor, ordinary_Q: Tensor, image_P: Tensor | None = None, *, level: float = 0.95
) -> CanaryAUC:
    """Area under the ROC curve of canaries against ordinary samples, with its interval.

    Args:
        canary_P: a measure's values for the canaries, (P,).
        ordinary_Q: its values for ordinary samples, (Q,).
        image_P: which image each canary shows: copies of one image are not independent. Default: each its own.
        level: nominal coverage.

    The interval is Wilson's for as many trials as would give DeLong's variance, which for copies is taken over images
    (Obuchowski). They are at most 4·W·Q/(W + Q), what Hanley and McNeil's variance comes to for an area near 1: DeLong's is
    0 where no canary is among the ordinary samples, and too small where only a few are. W is the effective number of
    canaries: their number over the design effect of the copies, but at least the number of images. With fewer than two
    images or ordinary samples the interval is [0, 1].

    Source: DeLong et al., Biometrics 44 (1988) 837-845; Obuchowski, Biometrics 53 (1997) 567-578; Hanley and McNeil,
    Radiology 143 (1982) 29-36; Korn and Graubard, Survey Methodology 24 (1998) 193-201, for the effective number.
    """
    check_open_fraction("level", level)
    canary, ordinary = _finite("canary_P", canary_P), np.sort(_finite("ordinary_Q", ordinary_Q))
    above_P = _fraction_below(canary, ordinary)
    below_Q = 1 - _fraction_below(ordinary, np.sort(canary))
    auc = float(above_P.mean())
    if image_P is not None and image_P.shape != canary_P.shape:
        raise ValueError(f"image_P has shape {tuple(image_P.shape)}, canary_P {tuple(canary_P.shape)}; they must agree")
    image_of_P = np.arange(len(canary)) if image_P is None else np.unique(image_P.numpy(), return_inverse=True)[1]
    excess_I = np.bincount(image_of_P, weights=above_P - auc)
    num_images, num_ordinary = len(excess_I), len(ordinary)
    if min(num_images, num_ordinary) < 2:
        return CanaryAUC(auc, 0.0, 1.0)
    clustered = num_images / (num_images - 1) * float((excess_I**2).sum()) / len(canary) ** 2
    variance = clustered + float(below_Q.var(ddof=1)) / num_ordinary
    effective_canaries = min(float(above_P.var(ddof=1)) / clustered, len(canary)) if clustered > 0 else 0
    effective_canaries = max(effective_canaries, num_images)
    trials = 4 * effective_canaries * num_ordinary / (effective_canaries + num_ordinary)
    if variance > 0:
        trials = min(trials, auc * (1 - auc) / variance)
    whole = max(1, math.floor(trials))
    bounds = effective_wilson_interval(auc * whole, whole, level)
    return CanaryAUC(auc, float(bounds.low), float(bounds.high))


def auc_by_kind(measures: Mapping[str, Tensor], canaries: Canaries) -> dict[str, dict[str, CanaryAUC]]:
    """AUC of every measure for every kind of canary, against the ordinary samples (those of no kind).

    Args:
        measures: (N,) each, by name; a NaN leaves that sample out.
        canaries: which samples were planted.

    Returns:
        By measure, then by kind. A kind without a value, or without an ordinary sample to compare with, is left out.

    Raises:
        CanaryError: an index lies outside the measures.
    """
    index_P, image_P = torch.from_numpy(canaries.index), torch.from_numpy(canaries.original)
    found: dict[str, dict[str, CanaryAUC]] = {}
    for name, values_N in measures.items():
        _check_indices(canaries, len(values_N))
        values_N = as_float64(values_N)
        known_N = ~values_N.isnan()
        ordinary_N = known_N.clone()
        ordinary_N[index_P] = False
        found[name] = {}
        for kind in canaries.kinds:
            member_P = torch.from_numpy(canaries.kind == kind) & known_N[index_P]
            if bool(member_P.any()) and bool(ordinary_N.any()):
                found[name][kind] = canary_auc(values_N[index_P[member_P]], values_N[ordinary_N], image_P[member_P])
    return found


def correlate_with_copies(measures: Mapping[str, Tensor], canaries: Canaries) -> dict[str, Correlation]:
    """Spearman's rank correlation of each measure with the number of copies, over the repeated images.

    An image's value is the average over its copies. Ordinary samples are left out: they would all tie at one copy.

    Returns:
        By measure; empty unless the images stand in the split in at least two different numbers.
    """
    member_P = canaries.kind == REPEATED
    index, image = canaries.index[member_P], np.unique(canaries.original[member_P], return_inverse=True)[1]
    copies_I = np.bincount(image)
    if len(np.unique(copies_I)) < 2:
        return {}
    found = {}
    for name, values_N in measures.items():
        _check_indices(canaries, len(values_N))
        values = as_float64(values_N).numpy()[index]
        known = ~np.isnan(values)
        known_I = np.bincount(image[known], minlength=len(copies_I))
        totals_I = np.bincount(image[known], weights=values[known], minlength=len(copies_I))
        seen_I = known_I > 0
        found[name] = spearman(torch.from_numpy(copies_I[seen_I]), torch.from_numpy(totals_I[seen_I] / known_I[seen_I]))
    return found


def _finite(name: str, values: Tensor) -> NDArray[np.float64]:
    numbers = as_float64(values).numpy()
    if numbers.ndim != 1 or not len(numbers) or np.isnan(numbers).any():
        raise ValueError(f"{name} must have one dimension, a value at least and no NaN; given {tuple(values.shape)}")
    return numbers


def _fraction_below(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fraction of the sorted `others` that lie below each value, ties counting half."""
    return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others))


def _check_indices(canaries: Canaries, num_samples: int) -> None:
    if len(canaries.index) and not 0 <= canaries.index.min() <= canaries.index.max() < num_samples:
        raise CanaryError(f"canaries up to index {canaries.index.max()} do not fit measures of {num_samples} samples")
