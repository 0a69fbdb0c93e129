"""Do the intervals cover? Simulated cases in which the truth is set by hand, thousands at a time.

An interval of level 95 % must contain the truth in 93-97 % of 2,000 cases (the count's own standard deviation is half a
point). Two kinds are left out on purpose, since they promise at least their level and no more: the exact binomial bounds
(hits are whole numbers) and McDiarmid's half-width (a worst case).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlpheads.memorization.arguments import check_count
from rlpheads.memorization.intervals import Interval, cluster_bootstrap, draw_interval, wilson_interval
from rlpheads.memorization.known_answer import KnownAnswer

NUM_CASES = 2000
NUM_SAMPLES = 1000
DRAW_SPREAD = 0.02
"""Standard deviation of a draw's own accuracy: what training from another draw adds to the binomial noise."""


def wilson_coverage(accuracy: float, num_samples: int, num_cases: int = NUM_CASES, seed: int = 0) -> float:
    """Fraction of cases in which Wilson's 95 % interval contains the accuracy."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.full((num_cases,), float(num_samples), dtype=torch.float64)
    hits = torch.binomial(count, torch.full_like(count, accuracy), generator=generator)
    return _covered(wilson_interval(hits, num_samples), accuracy)


def draw_coverage(num_draws: int, num_cases: int = NUM_CASES, seed: int = 0) -> float:
    """The same for the t interval across draws, whose true accuracies scatter about the mean that is sought."""
    accuracy_CM, truth = draw_accuracies(num_draws, num_cases, seed)
    return _covered(draw_interval(accuracy_CM), truth)


def bootstrap_coverage(num_draws: int, num_cases: int = NUM_CASES, seed: int = 0) -> float:
    """The same for the bootstrap clustered by draw."""
    accuracy_CM, truth = draw_accuracies(num_draws, num_cases, seed)
    return _covered(cluster_bootstrap(accuracy_CM), truth)


def draw_accuracies(num_draws: int, num_cases: int, seed: int) -> tuple[Tensor, float]:
    """Accuracies (C, M) on NUM_SAMPLES samples whose expectation scatters between draws, and their common mean."""
    check_count("num_draws", num_draws, least=2)
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
    rows += [KnownAnswer(f"t across draws, M={m}", 0.95, draw_coverage(m), 0.02) for m in (2, 3, 5, 10)]
    rows += [KnownAnswer(f"bootstrap by draw, M={m}", 0.95, bootstrap_coverage(m), 0.02) for m in (10, 20, 40)]
    return rows


def _covered(interval: Interval, truth: float) -> float:
    return float(interval.contains(truth).double().mean())
