"""Coverage of the audit's intervals, by least-squares probes on simulated features.

The features of a case are held fixed, as an audit holds those of its checkpoint, and its labels are drawn anew. The true
excess depends on the accuracy that fresh labels reach on average on those very features, known here from many
more draws than an audit has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.memorization.audit.excesses import Excess, label_excess, membership_excess
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe
from rlpheads.memorization.validation.known_answer import KnownAnswer

NUM_CASES, NUM_FEATURE_SETS, NUM_TRUTH_DRAWS = 2000, 10, 1000
NUM_SAMPLES, NUM_FEATURES, NUM_LABELS = 200, 15, 10


class Simulation(NamedTuple):
    """Accuracies on one set of features.

    Attributes:
        own_M: of the labels that the features were made with.
        fresh_CF: of fresh labels, F for each of C audits.
        expected: of fresh labels, from many further draws.
    """

    own_M: Tensor
    fresh_CF: Tensor
    expected: float


def simulate_audits(
    num_own: int, num_fresh: int, seed: int, strength: float = 0.0, unevenness: float = 0.0
) -> Iterator[Simulation]:
    """Yield NUM_FEATURE_SETS sets of features with NUM_CASES audits in all.

    Args:
        num_own: M.
        num_fresh: F.
        seed: of features and labels.
        strength: length of the direction that each own label adds to its rows, in standard deviations of the noise a feature.
        unevenness: standard deviation of the logarithms of the rows' lengths; uneven lengths are uneven leverages.
    """
    num_audits = NUM_CASES // NUM_FEATURE_SETS
    num_draws = num_own + num_audits * num_fresh + NUM_TRUTH_DRAWS
    for position in range(NUM_FEATURE_SETS):
        key = 1000 * seed + position
        generator = torch.Generator().manual_seed(key)
        labels_LN = label_table(NUM_SAMPLES, NUM_LABELS, num_draws=num_draws, seed=key, split="coverage")
        features_ND = torch.randn(NUM_SAMPLES, NUM_FEATURES, generator=generator)
        features_ND *= torch.exp(unevenness * torch.randn(NUM_SAMPLES, 1, generator=generator))
        for labels_N in labels_LN[:num_own]:
            directions_KD = torch.randn(NUM_LABELS, NUM_FEATURES, generator=generator)
            features_ND += strength * directions_KD[labels_N.long()]
        accuracy_L = LeastSquaresProbe()(features_ND, labels_LN, NUM_LABELS).accuracy_M
        own_M, fresh_L, truth_L = accuracy_L.split([num_own, num_audits * num_fresh, NUM_TRUTH_DRAWS])
        yield Simulation(own_M, fresh_L.view(num_audits, num_fresh), float(truth_L.mean()))


def label_excess_coverage(strength: float, num_own: int, num_fresh: int, seed: int = 0) -> tuple[float, float]:
    """Coverage of the label excess's interval, and the mean of the true excesses."""
    covered: list[bool] = []
    truths = []
    for own_M, fresh_CF, expected in simulate_audits(num_own, num_fresh, seed, strength):
        truths.append(float(own_M.mean()) - expected)
        covered += [_contains(label_excess(own_M, fresh_F), truths[-1]) for fresh_F in fresh_CF]
    return _mean(covered), _mean(truths)


def null_interval_coverage(num_own: int, num_fresh: int, seed: int = 0) -> float:
    """Coverage of the null interval `luck`: share of audits within it whose features hold nothing about the own labels."""
    covered: list[bool] = []
    for _, draws_CF, _ in simulate_audits(1, num_own + num_fresh, seed):
        excesses = [label_excess(draws_F[:num_own], draws_F[num_own:]) for draws_F in draws_CF]
        covered += [abs(excess.value) <= excess.luck for excess in excesses]
    return _mean(covered)


def membership_excess_coverage(unevenness: float, num_fresh: int, seed: int = 0) -> tuple[float, float]:
    """Coverage of the membership excess's interval, and the mean of the true excesses.

    Training rows have uneven lengths, held-out rows are Gaussian.
    """
    covered: list[bool] = []
    truths = []
    members = simulate_audits(1, num_fresh, seed, unevenness=unevenness)
    for inside, outside in zip(members, simulate_audits(1, num_fresh, seed + 1), strict=True):
        truths.append(inside.expected - outside.expected)
        audits = zip(inside.fresh_CF, outside.fresh_CF, strict=True)
        covered += [_contains(membership_excess(*sides), truths[-1]) for sides in audits]
    return _mean(covered), _mean(truths)


def excess_coverage() -> Sequence[KnownAnswer]:
    """Coverage of the audit's 95 % intervals over 2,000 simulated audits."""
    rows = []
    for strength, num_own in ((0.0, 1), (0.3, 1), (0.6, 1), (1.5, 1), (0.6, 3)):
        covered, excess = label_excess_coverage(strength, num_own, num_fresh=8)
        name = f"label excess of {100 * excess:+.0f} points, {num_own} own and 8 fresh draws"
        rows.append(KnownAnswer(name, 0.95, covered, 0.02))
    for num_own, num_fresh in ((1, 8), (4, 8), (1, 4)):
        name = f"luck of the label excess, {num_own} own and {num_fresh} fresh draws"
        rows.append(KnownAnswer(name, 0.95, null_interval_coverage(num_own, num_fresh), 0.02))
    for unevenness, num_fresh in ((0.0, 8), (1.0, 8), (1.0, 4)):
        covered, excess = membership_excess_coverage(unevenness, num_fresh)
        name = f"membership excess of {100 * excess:+.0f} points, {num_fresh} fresh draws"
        rows.append(KnownAnswer(name, 0.95, covered, 0.02))
    return rows


def _contains(excess: Excess, truth: float) -> bool:
    return excess.low <= truth <= excess.high


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
