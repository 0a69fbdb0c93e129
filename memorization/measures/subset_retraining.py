"""Ground truth of memorisation: how much a sample's own presence in the training set changes what is predicted for it.

Many networks are trained, each on a random subset of the samples, and all are asked about every sample. A sample is memorised
as far as networks that were trained on it get it right more often than networks that were not. No random label or head is
involved, so that every score that one run gives can be judged by it.

Source: Feldman and Zhang, What Neural Networks Memorize and Why (NeurIPS 2020), equation 1 and section 2.1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_hits, check_open_fraction
from rlpheads.memorization.measures.canaries import canary_auc
from rlpheads.memorization.measures.estimates import Estimated
from rlpheads.memorization.measures.intervals import as_float64
from rlpheads.memorization.measures.rank_correlation import Correlation, spearman

MEMORIZED = 0.25
"""Memorisation from which on Feldman and Zhang call a sample memorised."""


class SubsetMemorization(NamedTuple):
    """Memorisation by subset retraining, fp64 (N,); NaN where a sample was in all subsets or in none.

    `value_N`: accuracy of the networks that were trained on the sample less that of the others, in [-1, 1].
    `standard_error_N`: of that difference, over networks.
    `inside_N` and `outside_N`: the two accuracies.
    """

    value_N: Tensor
    standard_error_N: Tensor
    inside_N: Tensor
    outside_N: Tensor


class ScoreAgreement(NamedTuple):
    """How a single run's score agrees with the ground truth.

    `correlation`: Spearman's, with its interval over samples. `auc`: probability that a memorised sample (memorisation of at
    least `MEMORIZED`) has the higher score, unknown where all samples or none are memorised.
    """

    correlation: Correlation
    auc: Estimated


def subset_memorization(hit_RN: Tensor, inside_RN: Tensor) -> SubsetMemorization:
    """Estimated the memorisation of every sample from R networks.

    Args:
        hit_RN: whether a network predicts the sample's class, 0 or 1, (R, N).
        inside_RN: whether the sample was in the network's training set, 0 or 1, (R, N).

    The standard error is √(p(1 − p)/n) of either accuracy together, with p moved to (hits + 1)/(n + 2): networks that agree
    leave no error of 0.

    Raises:
        ValueError: other shapes, no network, or values that are neither 0 nor 1.
    """
    hits, inside = as_float64(hit_RN), as_float64(inside_RN)
    if hits.dim() != 2 or hits.shape != inside.shape or 0 in hits.shape:
        raise ValueError(
            f"hit_RN and inside_RN must be (R, N), neither 0; given {tuple(hits.shape)} and {tuple(inside.shape)}"
        )
    check_hits("hit_RN", hits)
    check_hits("inside_RN", inside)
    accuracies, variances = [], []
    for chosen_RN in (inside, 1 - inside):
        count_N, hits_N = chosen_RN.sum(0), (hits * chosen_RN).sum(0)
        accuracies.append(hits_N / count_N)
        moved_N = (hits_N + 1) / (count_N + 2)
        variances.append(moved_N * (1 - moved_N) / count_N)
    value_N = accuracies[0] - accuracies[1]
    error_N = (variances[0] + variances[1]).sqrt()
    return SubsetMemorization(value_N, torch.where(value_N.isnan(), torch.nan, error_N), *accuracies)


def truth_reliability(hit_RN: Tensor, inside_RN: Tensor) -> float:
    """Return how reliable the estimate from R networks is: Spearman's correlation between halves, stepped up to all of them.

    No score can correlate with the estimate by much more than the root of this. NaN for fewer than four networks, or where
    a half has a constant estimate.

    Source: the Spearman-Brown formula, 2ρ/(1 + ρ).
    """
    halves = [subset_memorization(hit_RN[half::2], inside_RN[half::2]).value_N for half in (0, 1) if len(hit_RN) >= 4]
    if not halves:
        return math.nan
    known_N = ~(halves[0].isnan() | halves[1].isnan())
    rho = spearman(halves[0][known_N], halves[1][known_N]).rho
    return 2 * rho / (1 + rho)


def score_agreement(score_N: Tensor, truth_N: Tensor, level: float = 0.95) -> ScoreAgreement:
    """Compare a score with the ground truth, over the samples where both are known (no NaN).

    Args:
        score_N: any score, higher or lower for memorised samples, (N,).
        truth_N: memorisation by `subset_memorization`, (N,).
        level: nominal coverage.
    """
    check_open_fraction("level", level)
    score, truth = as_float64(score_N), as_float64(truth_N)
    if score.dim() != 1 or score.shape != truth.shape:
        raise ValueError(f"score_N and truth_N must be (N,); given {tuple(score.shape)} and {tuple(truth.shape)}")
    known_N = ~(score.isnan() | truth.isnan())
    score, truth = score[known_N], truth[known_N]
    memorized = truth >= MEMORIZED
    auc = Estimated(math.nan, math.nan, math.nan)
    if bool(memorized.any()) and not bool(memorized.all()):
        auc = Estimated(*canary_auc(score[memorized], score[~memorized], level=level))
    return ScoreAgreement(spearman(score, truth, level), auc)


def share_falling(first_N: Tensor, last_N: Tensor, level: float = 0.95) -> Estimated:
    """Share of the samples whose value fell from one network to another, among those where it changed; Clopper and Pearson's.

    Above .5: it falls for most. Unknown where nothing changed.
    """
    check_open_fraction("level", level)
    change_N = as_float64(last_N) - as_float64(first_N)
    falling, changed = int((change_N < 0).sum()), int(((change_N < 0) | (change_N > 0)).sum())
    if not changed:
        return Estimated(math.nan, math.nan, math.nan)
    interval = stats.binomtest(falling, changed).proportion_ci(level, method="exact")
    return Estimated(falling / changed, float(interval.low), float(interval.high))
