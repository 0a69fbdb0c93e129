"""Coverage of the confidence intervals, in simulated cases whose truth is known.

An interval of level 95 % must contain the truth in 93-97 % of 2,000 cases (the count's own standard deviation is half a
point). McDiarmid's half-width promises at least its level and no more (a worst case), and the interval of an area under the
ROC curve is wider than needed near 1, where few canaries are out of place: these are only checked to cover often enough. The
audit's intervals are in `excess_coverage`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_count
from rlpheads.memorization.measures.canaries import canary_auc
from rlpheads.memorization.measures.exact import rademacher_complexity_of_constants
from rlpheads.memorization.measures.intervals import (
    Interval,
    binomial_bounds,
    cluster_bootstrap,
    draw_interval,
    mcdiarmid_half_width,
    wilson_interval,
)
from rlpheads.memorization.measures.pooled_draws import pool_draws
from rlpheads.memorization.validation.known_answer import KnownAnswer

NUM_CASES = 2000
NUM_SAMPLES = 1000
DRAW_SPREAD = 0.02
"""Standard deviation of a draw's own accuracy: what training from another draw adds to the binomial noise."""


def wilson_coverage(accuracy: float, num_samples: int, num_cases: int = NUM_CASES, seed: int = 0) -> float:
    """Coverage of Wilson's 95 % interval: the fraction of cases in which it contains the accuracy."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.full((num_cases,), float(num_samples), dtype=torch.float64)
    hits = torch.binomial(count, torch.full_like(count, accuracy), generator=generator)
    return _coverage(wilson_interval(hits, num_samples), accuracy)


def pooled_coverage(num_draws: int, num_cases: int = NUM_CASES, seed: int = 0) -> float:
    """Coverage of the interval of pooled draws, which differ by their labels alone; those found to differ included."""
    generator = torch.Generator().manual_seed(seed)
    count_CM = torch.full((num_cases, num_draws), float(NUM_SAMPLES), dtype=torch.float64)
    hits_CM = torch.binomial(count_CM, torch.full_like(count_CM, 0.3), generator=generator)
    return sum(bool(pool_draws(hits_M, NUM_SAMPLES).interval.contains(0.3)) for hits_M in hits_CM) / num_cases


def draw_coverage(num_draws: int, num_cases: int = NUM_CASES, seed: int = 0) -> float:
    """Coverage of the t interval across draws, whose true accuracies scatter about the mean to be estimated."""
    accuracy_CM, truth = draw_accuracies(num_draws, num_cases, seed)
    return _coverage(draw_interval(accuracy_CM), truth)


def bootstrap_coverage(num_draws: int, num_cases: int = NUM_CASES, seed: int = 0) -> float:
    """Coverage of the bootstrap clustered by draw."""
    accuracy_CM, truth = draw_accuracies(num_draws, num_cases, seed)
    return _coverage(cluster_bootstrap(accuracy_CM), truth)


def binomial_coverage(num_samples: int, num_labels: int, num_cases: int = NUM_CASES, seed: int = 0) -> float:
    """Coverage of the 95 % binomial bounds of chance, for accuracies of label-independent predictions."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.full((num_cases,), float(num_samples), dtype=torch.float64)
    hits = torch.binomial(count, torch.full_like(count, 1 / num_labels), generator=generator)
    return float(binomial_bounds(num_samples, num_labels, 0.95).contains(hits / num_samples).double().mean())


def mcdiarmid_coverage(num_samples: int, num_cases: int = NUM_CASES, seed: int = 0) -> float:
    """Coverage of McDiarmid's half-width around the Rademacher estimate of the two constant predictions of two labels."""
    generator = torch.Generator().manual_seed(seed)
    signs_CN = 1 - 2 * torch.randint(2, (num_cases, num_samples), generator=generator).double()
    distance_C = signs_CN.mean(1).abs() - rademacher_complexity_of_constants(num_samples)
    return float((distance_C.abs() <= mcdiarmid_half_width(num_samples, 1, 2)).double().mean())


def auc_coverage(auc: float, num_canaries: int, num_ordinary: int, num_cases: int = NUM_CASES) -> float:
    """Coverage of the AUC's interval for normal canaries against normal ordinary samples."""
    generator = torch.Generator().manual_seed(0)
    shift = math.sqrt(2) * float(stats.norm.ppf(auc))
    covered = 0
    for _ in range(num_cases):
        canary_P = torch.randn(num_canaries, generator=generator, dtype=torch.float64) + shift
        found = canary_auc(canary_P, torch.randn(num_ordinary, generator=generator, dtype=torch.float64))
        covered += found.low <= auc <= found.high
    return covered / num_cases


def draw_accuracies(num_draws: int, num_cases: int, seed: int) -> tuple[Tensor, float]:
    """Accuracies (C, M) on NUM_SAMPLES samples whose expectation scatters between draws, and their common mean."""
    check_count("num_draws", num_draws, minimum=2)
    truth = 0.3
    generator = torch.Generator().manual_seed(seed)
    scatter_CM = torch.randn(num_cases, num_draws, generator=generator, dtype=torch.float64)
    expected_CM = (truth + DRAW_SPREAD * scatter_CM).clamp(0, 1)
    count = torch.full_like(expected_CM, float(NUM_SAMPLES))
    return torch.binomial(count, expected_CM, generator=generator) / NUM_SAMPLES, truth


def interval_coverage() -> Sequence[KnownAnswer]:
    """Coverage of 95 % intervals over 2,000 simulated cases."""
    rows = [
        KnownAnswer(f"Wilson, n={num_samples}, accuracy {accuracy}", 0.95, wilson_coverage(accuracy, num_samples), 0.02)
        for num_samples, accuracy in ((100, 0.5), (400, 0.1), (NUM_SAMPLES, 0.3), (10_000, 0.01))
    ]
    rows += [KnownAnswer(f"draws pooled, M={m}", 0.95, pooled_coverage(m), 0.02) for m in (1, 2, 4)]
    rows += [KnownAnswer(f"t across draws, M={m}", 0.95, draw_coverage(m), 0.02) for m in (2, 3, 5, 10)]
    rows += [KnownAnswer(f"bootstrap by draw, M={m}", 0.95, bootstrap_coverage(m), 0.02) for m in (10, 20, 40)]
    rows += [
        KnownAnswer(f"bounds of chance, n={n}, K={k}", 0.95, binomial_coverage(n, k), 0.02)
        for n, k in ((360, 10), (10_000, 10), (50_000, 1000))
    ]
    rows += [
        KnownAnswer(f"area under ROC {auc}, {p} canaries, {q} others", 0.95, auc_coverage(auc, p, q), 0.02)
        for auc, p, q in ((0.5, 287, 1150), (0.76, 287, 1150), (0.93, 287, 1150), (0.8, 30, 1400))
    ]
    conservative = {
        "area under ROC 0.98, 287 canaries, 1150 others": auc_coverage(0.98, 287, 1150),
        "area under ROC 0.99, 30 canaries, 1400 others": auc_coverage(0.99, 30, 1400),
        "McDiarmid, n=100": mcdiarmid_coverage(100),
    }
    return rows + [KnownAnswer(name, 0.95, covered, 0.02, at_least=True) for name, covered in conservative.items()]


def _coverage(interval: Interval, truth: float) -> float:
    return float(interval.contains(truth).double().mean())
