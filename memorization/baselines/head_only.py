"""Head-only baseline: random-label accuracy of a linear head on features independent of the labels, and the choice of K.

A head whose features are independent of the labels still fits some: the more so, the fewer samples there are per feature.
Raw random-label accuracy is read beside this baseline. Here is the least-squares head (closed form, any K), the choice of K
and its warning; the logistic head is in `logistic_baseline`, the capacity in `capacity`, Cover's probability in `exact`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

from rlpheads.memorization.arguments import check_alpha, check_count, check_num_labels
from rlpheads.memorization.baselines.capacity import capacity
from rlpheads.memorization.baselines.gaussian import normal_rule
from rlpheads.memorization.heads.labels import MAX_LABELS

CHANCE_MARGIN = 0.05
NEAR_PERFECT_FIT = 0.95
_SCAN_RATIO = 1.02


class LabelChoice(NamedTuple):
    """The number of labels that was chosen, the least-squares head's accuracy with it, and a warning for the user."""

    num_labels: int
    baseline: float
    warning: str | None


@lru_cache(maxsize=4096, typed=True)  # 10.0 labels must not be answered from the cache of 10
def least_squares_rla(num_labels: int, alpha: float) -> float:
    """Random-label accuracy of a least-squares head on n samples of d Gaussian features, in the limit with α = n/d.

    ∫ φ(z)·Φ(z + √(K/(α−1)))^{K−1} dz: a sample's own score is lifted by its leverage 1/α. For α ≤ 1 the head interpolates:
    exactly 1. Within ±.02 of a simulation from n = 2000 on.

    Args:
        num_labels: K ≥ 2.
        alpha: n/d > 0.
    """
    num_labels = check_num_labels(num_labels)
    check_alpha(alpha)
    if alpha <= 1:
        return 1.0
    nodes, weights = normal_rule()
    lift = math.sqrt(num_labels / (alpha - 1))
    return min(1.0, float(weights @ np.exp((num_labels - 1) * special.log_ndtr(nodes + lift))))


def auto_labels(num_samples: int, num_features: int) -> LabelChoice:
    """Largest K with which the head alone stays within 5 points of chance (`heads.labels: auto`).

    The head here is the least-squares one, on Gaussian features. Its excess over chance rises from K = 2 to about 5, falls,
    and rises again towards 1, so K is sought from above; the search steps by 2 % and then pins the last K that qualifies.
    With few samples for each feature no K qualifies: then K = 2, with a warning.

    Args:
        num_samples: n, training samples.
        num_features: d, features of the widest tap.
    """
    num_samples, num_features = check_count("num_samples", num_samples), check_count("num_features", num_features)
    alpha = num_samples / num_features
    high = _search_limit(alpha)
    low = high
    while low >= 2 and _excess(low, alpha) > CHANCE_MARGIN:
        low, high = min(low - 1, int(low / _SCAN_RATIO)), low
    if low < 2:
        return _fall_back_to_two_labels(num_samples, num_features)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _excess(middle, alpha) <= CHANCE_MARGIN else (low, middle)
    return LabelChoice(low, least_squares_rla(low, alpha), capacity_warning(low, num_samples, num_features))


def capacity_warning(num_labels: int, num_samples: int, num_features: int) -> str | None:
    """Warning for a K with which the head alone fits nearly every label, or None.

    It does where n/d is at most the capacity of a linear head (every label can be fitted), or where the least-squares head
    alone reaches 95 %: random-label accuracy then says next to nothing about the backbone.
    """
    num_samples, num_features = check_count("num_samples", num_samples), check_count("num_features", num_features)
    num_labels = check_num_labels(num_labels)
    alpha = num_samples / num_features
    baseline = least_squares_rla(num_labels, alpha)
    limit = capacity(num_labels)
    if alpha > limit and baseline < NEAR_PERFECT_FIT:
        return None
    reason = (
        f"a linear head fits every one of {num_labels} random labels up to {limit:.4g} samples per feature"
        if alpha <= limit
        else f"a least-squares head alone reaches {baseline:.2f} with {num_labels} random labels"
    )
    return (
        f"{reason}, and there are {alpha:.4g} (n={num_samples}, d={num_features}): random-label accuracy will say next to "
        "nothing about the backbone; use fewer labels, or read the excesses over refitted heads"
    )


def _fall_back_to_two_labels(num_samples: int, num_features: int) -> LabelChoice:
    """Choose the smallest K, with the reason, because no K qualifies."""
    baseline = least_squares_rla(2, num_samples / num_features)
    warning = capacity_warning(2, num_samples, num_features) or (
        f"with n={num_samples} samples and d={num_features} features no number of labels keeps the head alone within "
        f"{CHANCE_MARGIN:.2f} of chance; K=2, where it reaches {baseline:.2f}: read random-label accuracy beside this baseline"
    )
    return LabelChoice(2, baseline, warning)


def _excess(num_labels: int, alpha: float) -> float:
    return least_squares_rla(num_labels, alpha) - 1 / num_labels


def _search_limit(alpha: float) -> int:
    """Some K with which, and above which, the head alone is far off chance; at most the largest K there can be."""
    num_labels = 4
    while least_squares_rla(num_labels, alpha) < 0.5 and num_labels < MAX_LABELS:
        num_labels *= 2
    return num_labels
