"""Known answers for what is asked of a trained network alone: membership inference, and memorisation by subset retraining."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor

from rlpheads.memorization.measures.membership import membership_inference, true_positive_rate
from rlpheads.memorization.measures.subset_retraining import subset_memorization
from rlpheads.memorization.validation.known_answer import Check, KnownAnswer

SHIFT = 1.5
"""Distance of the members' normal scores from those of the others, in standard deviations."""


def membership_rates() -> Sequence[KnownAnswer]:
    """Membership inference by normal scores: closed forms, and the intervals' coverage over 2,000 cases (at least 95 %)."""
    generator = torch.Generator().manual_seed(0)
    members, others = (torch.randn(10**6, generator=generator) + shift for shift in (SHIFT, 0.0))
    found = membership_inference(members, others)
    rows = [KnownAnswer("AUC", float(stats.norm.cdf(SHIFT / math.sqrt(2))), found.auc.value, 0.002)]
    for rate, each in found.tpr_at.items():
        expected = float(stats.norm.sf(stats.norm.isf(rate) - SHIFT))
        rows.append(KnownAnswer(f"found at {rate:.1%} false positives", expected, each.value, 0.01))
    rows += [
        KnownAnswer(f"coverage at {rate:.1%}, 300 members, 250 others", 0.95, rate_coverage(rate), 0.01, at_least=True)
        for rate in (0.1, 0.01)
    ]
    return rows


def rate_coverage(rate: float, num_cases: int = 2000) -> float:
    """Fraction of cases whose interval contains the true-positive rate at a false-positive rate."""
    generator = torch.Generator().manual_seed(1)
    truth = float(stats.norm.sf(stats.norm.isf(rate) - SHIFT))
    covered = 0
    for _ in range(num_cases):
        members = torch.randn(300, generator=generator) + SHIFT
        found = true_positive_rate(members, torch.randn(250, generator=generator), rate)
        covered += found.low <= truth <= found.high
    return covered / num_cases


def nearest_neighbour_memorisation() -> Sequence[KnownAnswer]:
    """Subset retraining of a nearest-neighbour rule: classes that are noise are memorised by 1 − 1/C, repeated images not."""
    generator = torch.Generator().manual_seed(2)
    rows = []
    for num_classes in (2, 10):
        points_ND = torch.randn(400, 5, generator=generator)
        class_N = torch.randint(num_classes, (400,), generator=generator)
        value_N = _nearest_neighbour_truth(points_ND, class_N, generator)
        rows.append(KnownAnswer(f"noise, C={num_classes}", 1 - 1 / num_classes, float(value_N.mean()), 0.05))
        # Every image ten times: one copy more or less is never missed.
        tenfold_N = _nearest_neighbour_truth(points_ND[:40].repeat(10, 1), class_N[:40].repeat(10), generator)
        rows.append(KnownAnswer(f"ten copies of each image, C={num_classes}", 0.0, float(tenfold_N.mean()), 0.005))
    return rows


def _nearest_neighbour_truth(points_ND: Tensor, class_N: Tensor, generator: torch.Generator) -> Tensor:
    """Return the memorisation of every point by 60 nearest-neighbour rules on random halves of them."""
    distance_NN = torch.cdist(points_ND, points_ND)
    inside_RN = torch.rand(60, len(points_ND), generator=generator) < 0.5
    nearest_RN = torch.stack([distance_NN.masked_fill(~inside_N, torch.inf).argmin(1) for inside_N in inside_RN])
    return subset_memorization(class_N[nearest_RN] == class_N, inside_RN).value_N


CHECKS: tuple[Check, ...] = (membership_rates, nearest_neighbour_memorisation)
