"""Exact values by enumeration, for small cases: the ground truth that estimates and bounds are tested against."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_finite, check_fractions, check_num_labels
from rlpheads.memorization.measures.intervals import as_float64

MAX_ENUMERATED = 1 << 22


def rademacher_complexity(predictions_FN: Tensor) -> float:
    """Empirical Rademacher complexity E_σ max_f (1/n) Σ_i σ_i f(x_i) of a finite class, over all 2^n sign vectors.

    Args:
        predictions_FN: what each of F functions gives on n ≤ 22 samples, usually ±1.
    """
    predictions_FN = as_float64(predictions_FN)
    if predictions_FN.dim() != 2 or 0 in predictions_FN.shape:
        raise ValueError(f"predictions must have shape (F, N), neither 0; given {tuple(predictions_FN.shape)}")
    check_finite("predictions_FN", predictions_FN)
    num_samples = predictions_FN.shape[1]
    _check_enumerable(2, num_samples)
    bits_SN = (torch.arange(2**num_samples).unsqueeze(1) >> torch.arange(num_samples)) & 1
    best_S = torch.cat([((2 * chunk - 1).double() @ predictions_FN.T).amax(1) for chunk in bits_SN.split(4096)])
    return float(best_S.mean()) / num_samples


def rademacher_complexity_of_constants(num_samples: int) -> float:
    """Empirical Rademacher complexity of the two constant functions ±1, in closed form: E|Σσ_i|/n ≈ √(2/(πn)), n ≥ 1."""
    num_samples = check_count("num_samples", num_samples)
    heads = np.arange(num_samples + 1)
    return float(stats.binom.pmf(heads, num_samples, 0.5) @ np.abs(2 * heads - num_samples)) / num_samples


def threshold_predictions(num_samples: int) -> Tensor:
    """One-dimensional thresholds of both signs on n ordered points: the 2n different ±1 rows, fp64 (F, N)."""
    num_samples = check_count("num_samples", num_samples)
    rising_FN = torch.ones(num_samples, num_samples, dtype=torch.float64).triu() * 2 - 1
    return torch.cat([rising_FN, -rising_FN])


def mean_e_value(probability_NK: Tensor) -> float:
    """E[2^T] = Σ_y 2^T(y) / K^n over all K^n label vectors, for predictions that do not depend on them: 1 exactly.

    Args:
        probability_NK: rows that sum to 1 (within 1e-6), N ≥ 1, K^n at most 2^22.
    """
    probability_NK = as_float64(probability_NK)
    if probability_NK.dim() != 2:
        raise ValueError(f"probabilities must have shape (N, K); given {tuple(probability_NK.shape)}")
    check_fractions("probability_NK", probability_NK)
    if not bool((probability_NK.sum(1) - 1).abs().max() < 1e-6):
        raise ValueError("every row of probability_NK must sum to 1")
    num_samples, num_labels = probability_NK.shape
    check_num_labels(num_labels)
    _check_enumerable(num_labels, num_samples)
    bits_NK = torch.log2(probability_NK) + np.log2(num_labels)
    labels_SN = torch.tensor(list(itertools.product(range(num_labels), repeat=num_samples)))
    total_S = bits_NK[torch.arange(num_samples), labels_SN].sum(1)
    return float(torch.exp2(total_S).mean())


def separable_probability(num_samples: int, num_features: int) -> float:
    """Cover's function-counting theorem: probability that n randomly signed points are linearly separable through the origin.

    For points in general position it is 2^{1−n} Σ_{k<d} C(n−1, k).

    Source: T. Cover, IEEE Trans. Electronic Computers EC-14 (1965) 326-334.
    """
    num_samples, num_features = check_count("num_samples", num_samples), check_count("num_features", num_features)
    return float(stats.binom.cdf(num_features - 1, num_samples - 1, 0.5))


def _check_enumerable(num_values: int, num_samples: int) -> None:
    if num_values**num_samples > MAX_ENUMERATED:
        raise ValueError(
            f"{num_values}^{num_samples} label vectors are too many to enumerate; at most {MAX_ENUMERATED}"
        )
