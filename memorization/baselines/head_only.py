"""Head-only baseline: random-label accuracy of a linear head on features independent of the labels, and the choice of K.

A head whose features are independent of the labels still fits some: the more so, the fewer samples there are per feature.
Raw random-label accuracy is read beside this baseline. Here is the least-squares head (closed form, any K), the choice of K
and its warning; the logistic head is in `logistic_baseline`, the capacity in `capacity`, Cover's probability in `exact`.

Probes and heads have an intercept, and labels are i.i.d.: `head_only_rla` is their baseline. `least_squares_rla` is its limit
for equally frequent labels, far above it where labels have few samples (n = 2,000, d = 100, K = 100: .426 against .393).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from rlpheads.memorization.arguments import check_alpha, check_count, check_num_labels
from rlpheads.memorization.baselines.capacity import capacity
from rlpheads.memorization.baselines.gaussian import normal_rule
from rlpheads.memorization.baselines.label_counts import accuracy_over_label_counts
from rlpheads.memorization.heads.labels import MAX_LABELS, Balance, check_balance

CHANCE_MARGIN = 0.05
NEAR_PERFECT_FIT = 0.95
_SCAN_RATIO = 1.02


class LabelChoice(NamedTuple):
    """The number of labels that was chosen, `head_only_rla` with it, and a warning for the user."""

    num_labels: int
    baseline: float
    warning: str | None


@lru_cache(maxsize=4096, typed=True)  # 10.0 labels must not be answered from the cache of 10
def least_squares_rla(num_labels: int, alpha: float) -> float:
    """Random-label accuracy of a least-squares head on n samples of d Gaussian features, in the limit with α = n/d.

    ∫ φ(z)·Φ(z + √(K/(α−1)))^{K−1} dz: a sample's own score is lifted by its leverage 1/α. For α ≤ 1 the head interpolates:
    exactly 1. Labels are equally frequent here and the head has no intercept; for i.i.d. labels see `head_only_rla`.

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
    log_below = torch.special.log_ndtr(torch.from_numpy(nodes + lift)).numpy()
    return min(1.0, float(weights @ np.exp((num_labels - 1) * log_below)))


@lru_cache(maxsize=4096, typed=True)
def head_only_rla(num_labels: int, num_samples: int, num_features: int, balance: Balance = "iid") -> float:
    """Random-label accuracy of a least-squares head with an intercept on n samples of d Gaussian features: the baseline.

    Args:
        num_labels: K ≥ 2.
        num_samples: n ≥ 1.
        num_features: d ≥ 1. For n ≤ d + 1 the head interpolates: exactly 1.
        balance: "iid": averaged over how often each label occurs (`label_counts`, whose derivation is there). "balanced":
            `least_squares_rla` at α = (n−1)/d. Labels drawn inside each class are "iid" with the class's n.

    Within ±.01 of fitted probes from n = 1,400 on, and within .0005 of averages over drawn multinomial counts. A call takes
    1 to 2 ms, and its result is remembered.
    """
    num_labels = check_num_labels(num_labels)
    num_samples, num_features = check_count("num_samples", num_samples), check_count("num_features", num_features)
    check_balance(balance)
    if num_samples <= num_features + 1:
        return 1.0
    if balance == "balanced":
        return least_squares_rla(num_labels, (num_samples - 1) / num_features)
    return accuracy_over_label_counts(num_labels, num_samples, num_features)


def auto_labels(num_samples: int, num_features: int, balance: Balance = "iid") -> LabelChoice:
    """Largest K with which the head alone stays within 5 points of chance (`heads.labels: auto`).

    The head here is the least-squares one, on Gaussian features. Its excess over chance rises from K = 2 to about 5, falls,
    and rises again towards 1, so K is sought from above, in steps of 2 % or more, and then the last K that qualifies is
    pinned. The excess changes by less than 1 for a factor e in K (.7 at most was found), which says how far a step may go
    without passing a K that qualifies. K is at most n: of more labels most never occur. With few samples for each feature
    no K qualifies: then K = 2, with a warning. At most .4 s.

    Args:
        num_samples: n, training samples.
        num_features: d, features of the widest tap.
        balance: how the labels are drawn; see `head_only_rla`.
    """
    num_samples, num_features = check_count("num_samples", num_samples), check_count("num_features", num_features)

    def excess(num_labels: int) -> float:
        return head_only_rla(num_labels, num_samples, num_features, balance) - 1 / num_labels

    high = low = _search_limit(num_samples, num_features, balance)
    while low >= 2 and (too_much := excess(low) - CHANCE_MARGIN) > 0:
        low, high = min(low - 1, int(low / max(_SCAN_RATIO, math.exp(too_much)))), low
    if low < 2:
        return _fall_back_to_two_labels(num_samples, num_features, balance)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if excess(middle) <= CHANCE_MARGIN else (low, middle)
    baseline = head_only_rla(low, num_samples, num_features, balance)
    return LabelChoice(low, baseline, capacity_warning(low, num_samples, num_features, balance))


def capacity_warning(num_labels: int, num_samples: int, num_features: int, balance: Balance = "iid") -> str | None:
    """Warning for a K with which the head alone fits nearly every label, or None.

    It does where n/d is at most the capacity of a linear head (every label can be fitted), or where the least-squares head
    alone reaches 95 %: random-label accuracy then says next to nothing about the backbone.
    """
    num_samples, num_features = check_count("num_samples", num_samples), check_count("num_features", num_features)
    num_labels = check_num_labels(num_labels)
    alpha = num_samples / num_features
    baseline = head_only_rla(num_labels, num_samples, num_features, balance)
    # The capacity is at most K: K − 1 over E J ≥ P(J > 0) = 1 − 1/K, as the largest of K scores is the label's own in 1/K.
    limit = num_labels if alpha > num_labels else capacity(num_labels)
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


def _fall_back_to_two_labels(num_samples: int, num_features: int, balance: Balance) -> LabelChoice:
    """Choose the smallest K, with the reason, because no K qualifies."""
    baseline = head_only_rla(2, num_samples, num_features, balance)
    warning = capacity_warning(2, num_samples, num_features, balance) or (
        f"with n={num_samples} samples and d={num_features} features no number of labels keeps the head alone within "
        f"{CHANCE_MARGIN:.2f} of chance; K=2, where it reaches {baseline:.2f}: read random-label accuracy beside this baseline"
    )
    return LabelChoice(2, baseline, warning)


def _search_limit(num_samples: int, num_features: int, balance: Balance) -> int:
    """Some K with which, and above which, the head alone is far off chance; at most one label a sample."""
    num_labels, most = 4, max(2, min(num_samples, MAX_LABELS))
    while num_labels < most and head_only_rla(num_labels, num_samples, num_features, balance) < 0.5:
        num_labels *= 2
    return min(num_labels, most)
