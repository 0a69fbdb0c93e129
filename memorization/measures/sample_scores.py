"""Memorised samples: a score with its standard error for each, and a set at a controlled false discovery rate.

A sample is judged over independent draws of its random label. One draw cannot tell a memorised sample from a chance hit (the
smallest p-value is K^−M), so the set says 'not resolvable' where the draws are too few, instead of an empty answer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_fractions, check_num_labels, check_open_fraction
from rlpheads.memorization.measures.intervals import as_float64


class SampleScores(NamedTuple):
    """`score_N`: 0 at chance, 1 when every draw is hit; `standard_error_N`: across draws, NaN with one draw. fp64 (N,)."""

    score_N: Tensor
    standard_error_N: Tensor


class MemorizedSet(NamedTuple):
    """Samples hit significantly more often than chance, by the Benjamini-Hochberg procedure.

    `member_N` is bool (N,), or None when `resolvable` is False: the draws are too few to resolve any.
    `p_value_N` and `adjusted_N` (Benjamini-Hochberg) are fp64 (N,); `needed_draws` is how many draws would do.
    """

    member_N: Tensor | None
    p_value_N: Tensor
    adjusted_N: Tensor
    resolvable: bool
    needed_draws: int

    def describe(self) -> str:
        """One line for a report."""
        if self.member_N is None:
            return f"not resolvable: needs {self.needed_draws} draws of the labels"
        return f"{int(self.member_N.sum())} of {len(self.member_N)} samples memorised"


def sample_scores(hit_MN: Tensor, num_labels: int) -> SampleScores:
    """Mean over draws of (hit − 1/K)/(1 − 1/K) for each sample, with its standard error.

    Args:
        hit_MN: hits of shape (M, N), or (E, M, N) with epochs in front. Epochs of one head are correlated, so they are
            averaged within a draw first and only the draws count as independent. Such averages, in [0, 1], are taken too.
        num_labels: K.

    Raises:
        ValueError: another shape, or values that are NaN or outside [0, 1].
    """
    num_labels = check_num_labels(num_labels)
    hits = as_float64(hit_MN)
    if hits.dim() not in (2, 3) or 0 in hits.shape:
        raise ValueError(f"hits must have shape (M, N) or (E, M, N), none of them 0; given {tuple(hits.shape)}")
    check_fractions("hit_MN", hits)
    per_draw_MN = hits if hits.dim() == 2 else hits.mean(0)
    chance = 1 / num_labels
    score_MN = (per_draw_MN - chance) / (1 - chance)
    num_draws = len(score_MN)
    if num_draws == 1:
        return SampleScores(score_MN[0], torch.full_like(score_MN[0], math.nan))
    return SampleScores(score_MN.mean(0), score_MN.std(0, correction=1) / math.sqrt(num_draws))


def needed_draws(num_samples: int, num_labels: int, num_resolved: int = 1, rate: float = 0.05) -> int:
    """Draws M that can resolve R memorised samples among n: the smallest M ≥ ln(n/(rate·R))/ln K.

    A sample hit in every draw has the p-value K^−M, and Benjamini-Hochberg accepts R of them where that is at most rate·R/n.
    """
    num_labels, num_samples = check_num_labels(num_labels), check_count("num_samples", num_samples)
    num_resolved = check_count("num_resolved", num_resolved)
    check_open_fraction("rate", rate)
    if num_resolved > num_samples:
        raise ValueError(f"num_resolved is {num_resolved}; there are only {num_samples} samples")
    # The tolerance keeps an exact power of K (n = 5, rate = .05, K = 10: M = 2) from being rounded up.
    return max(1, math.ceil(math.log(num_samples / (rate * num_resolved)) / math.log(num_labels) - 1e-9))


def memorized_set(hit_MN: Tensor, num_labels: int, *, num_resolved: int = 1, rate: float = 0.05) -> MemorizedSet:
    """Samples hit in more of M draws than chance: one-sided Binomial(M, 1/K) p-values, then Benjamini-Hochberg.

    Args:
        hit_MN: bool hits of one pass, shape (M, N). Not averages over epochs: the p-value needs whole hits.
        num_labels: K of labels that were drawn i.i.d.
        num_resolved: R, the smallest number of memorised samples that has to be seen; decides whether M is enough.
        rate: the false discovery rate.
    """
    num_labels, hits = check_num_labels(num_labels), as_float64(hit_MN)
    if hits.dim() != 2 or 0 in hits.shape:
        raise ValueError(f"hits must have shape (M, N), none of them 0; given {tuple(hits.shape)}")
    if not bool(((hits == 0) | (hits == 1)).all()):
        raise ValueError("hits must be 0 or 1; averages over epochs have no binomial p-value (take one epoch)")
    num_draws, num_samples = hits.shape
    least = needed_draws(num_samples, num_labels, num_resolved, rate)
    p_value = stats.binom.sf(hits.sum(0).numpy() - 1, num_draws, 1 / num_labels)
    adjusted = torch.from_numpy(stats.false_discovery_control(p_value, method="bh"))
    resolvable = num_draws >= least
    return MemorizedSet(
        adjusted <= rate if resolvable else None, torch.from_numpy(p_value), adjusted, resolvable, least
    )
