"""Known answers by simulation: heads fitted to random labels on Gaussian features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from rlpheads.memorization.baselines.capacity import capacity
from rlpheads.memorization.baselines.head_only import head_only_rla, least_squares_rla
from rlpheads.memorization.baselines.logistic_baseline import logistic_rla, simulate_logistic
from rlpheads.memorization.heads.labels import Balance, label_table
from rlpheads.memorization.measures import exact
from rlpheads.memorization.measures.intervals import binomial_bounds
from rlpheads.memorization.probes.feature_blocks import GaussianFeatures
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe
from rlpheads.memorization.validation.closed_form_answers import LEAST_SQUARES
from rlpheads.memorization.validation.known_answer import Check, KnownAnswer

NUM_LEAST_SQUARES = 4000  # with 20 samples a label (n = 2000, K = 100) their unequal counts still cost .017 of accuracy
NUM_LOGISTIC = 2000
NUM_DRAWS = 4
NUM_PROBES = 12
PROBED: tuple[tuple[int, int, int, Balance], ...] = (
    (100, 2000, 100, "iid"),
    (100, 1437, 96, "iid"),
    (100, 2000, 100, "balanced"),
    (10, 1437, 192, "iid"),
    (2, 1437, 192, "iid"),
    (1000, 4000, 100, "iid"),
)


def least_squares_simulated() -> Sequence[KnownAnswer]:
    """Least-squares head without intercept, fitted (n=4000, mean of 4)."""
    rows = []
    for num_labels, alpha in LEAST_SQUARES:
        num_features = NUM_LEAST_SQUARES // alpha
        accuracies = [
            _least_squares_accuracy(num_labels, NUM_LEAST_SQUARES, num_features, seed) for seed in range(NUM_DRAWS)
        ]
        expected = least_squares_rla(num_labels, alpha)
        name = f"accuracy, K={num_labels}, n/d={alpha}"
        rows.append(KnownAnswer(name, expected, float(np.mean(accuracies)), 0.02))
    rows.append(KnownAnswer("accuracy, K=10, n/d=1", 1.0, _least_squares_accuracy(10, 1000, 1000, seed=0), 0.0))
    return rows


def head_alone_simulated() -> Sequence[KnownAnswer]:
    """The audit's least-squares probe, with its intercept, on Gaussian features (mean of 12)."""
    rows = []
    for num_labels, num_samples, num_features, balance in PROBED:
        accuracies = [
            _probe_accuracy(num_labels, num_samples, num_features, balance, seed) for seed in range(NUM_PROBES)
        ]
        expected = head_only_rla(num_labels, num_samples, num_features, balance)
        name = f"accuracy, K={num_labels}, n={num_samples}, d={num_features}, {balance} labels"
        rows.append(KnownAnswer(name, expected, float(np.mean(accuracies)), 0.01))
    return rows


def capacity_simulated() -> Sequence[KnownAnswer]:
    """Capacity, by simulating the projection (50,000 draws, within 3 standard errors)."""
    rows = []
    for num_labels in (2, 10, 1000, 10**5):
        value, error = simulated_capacity(num_labels, 50_000, seed=0)
        rows.append(KnownAnswer(f"capacity, K={num_labels}", capacity(num_labels), value, 3 * error))
    return rows


def separability_simulated() -> Sequence[KnownAnswer]:
    """Cover, d=20: 300 random labellings, separability by linear programming."""
    generator = np.random.default_rng(0)
    rows = []
    for num_samples in (32, 40, 48):
        separable = [is_separable(generator.standard_normal((num_samples, 20))) for _ in range(300)]
        expected = exact.separable_probability(num_samples, 20)
        rows.append(KnownAnswer(f"P(separable), n={num_samples}", expected, float(np.mean(separable)), 0.09))
    return rows


def logistic_simulated() -> Sequence[KnownAnswer]:
    """Logistic head, fitted (K=2, n=2000, mean of 4)."""
    rows = []
    for alpha in (2.5, 3, 5, 10):
        fits = [simulate_logistic(2, NUM_LOGISTIC, round(NUM_LOGISTIC / alpha), seed) for seed in range(NUM_DRAWS)]
        limit = logistic_rla(2, alpha)
        accuracy = float(np.mean([fit.accuracy for fit in fits]))
        bits = float(np.mean([fit.bits_per_parameter for fit in fits]))
        rows.append(KnownAnswer(f"accuracy, n/d={alpha}", limit.accuracy, accuracy, 0.02))
        rows.append(KnownAnswer(f"bits per parameter, n/d={alpha}", limit.bits_per_parameter, bits, 0.05))
    below = simulate_logistic(2, NUM_LOGISTIC, round(NUM_LOGISTIC / 1.5), 0)
    rows.append(KnownAnswer("accuracy, n/d=1.5", 1.0, below.accuracy, 0.0))
    return rows


def held_out_at_chance() -> Sequence[KnownAnswer]:
    """Held-out accuracy of fitted heads, within exact binomial bounds at 1e-4."""
    num_held_out, num_features = 20_000, 400
    rows = []
    for num_labels in (2, 10, 100):
        generator = np.random.default_rng([num_labels])
        features_ND, fitted_labels_N = _random_problem(num_labels, 5 * num_features, num_features, seed=0)
        weight_DK = _fit_least_squares(features_ND, fitted_labels_N, num_labels)
        labels_N = label_table(num_held_out, num_labels, num_draws=1, seed=0, split="heldout")[0].numpy()
        scores_NK = generator.standard_normal((num_held_out, num_features)) @ weight_DK
        bounds = binomial_bounds(num_held_out, num_labels)
        middle, half = float(bounds.low + bounds.high) / 2, float(bounds.high - bounds.low) / 2
        name = f"held-out accuracy, K={num_labels}, m={num_held_out} (middle of the bounds)"
        rows.append(KnownAnswer(name, middle, float((scores_NK.argmax(1) == labels_N).mean()), half))
    return rows


def is_separable(points_ND: NDArray[np.float64]) -> bool:
    """Whether some w has w·x > 0 for every row x (rows already multiplied by their signs)."""
    num_samples, num_features = points_ND.shape
    program = optimize.linprog(
        np.zeros(num_features), A_ub=-points_ND, b_ub=-np.ones(num_samples), bounds=(None, None), method="highs"
    )
    if program.status not in (0, 2):
        raise ArithmeticError(f"the linear program ended with: {program.message}")
    return bool(program.status == 0)


def simulated_capacity(num_labels: int, num_draws: int, seed: int) -> tuple[float, float]:
    """(K−1)/E‖g − Π(g)‖² from the definition, with drawn g, and its standard error.

    Only the highest of the K−1 other labels can be lowered, so only these order statistics are drawn (by exponential spacings).
    """
    others = num_labels - 1
    num_top = min(others, 200)
    generator = np.random.default_rng([seed, num_labels])
    spacings_RJ = generator.exponential(size=(num_draws, num_top)) / (others - np.arange(num_top))
    top_RJ = -special.ndtri(-np.expm1(-np.cumsum(spacings_RJ, axis=1)))
    own_R1 = generator.standard_normal((num_draws, 1))
    # The common height if the j highest are lowered to it; as long as the j-th lies above, lowering it was right.
    heights_RJ = (own_R1 + np.cumsum(top_RJ, axis=1)) / (np.arange(num_top) + 2)
    num_lowered_R1 = (top_RJ > heights_RJ).sum(axis=1, keepdims=True)
    last_RJ = np.concatenate([own_R1, heights_RJ], axis=1)
    height_R1 = np.take_along_axis(last_RJ, num_lowered_R1, axis=1)
    residual_R = (height_R1 - own_R1)[:, 0] ** 2 + (np.clip(top_RJ - height_R1, 0, None) ** 2).sum(axis=1)
    value = others / float(residual_R.mean())
    return value, value * float(residual_R.std() / residual_R.mean()) / math.sqrt(num_draws)


def _probe_accuracy(num_labels: int, num_samples: int, num_features: int, balance: Balance, seed: int) -> float:
    labels_MN = label_table(num_samples, num_labels, num_draws=1, seed=seed, split="train", balance=balance)
    features = GaussianFeatures(num_samples, num_features, seed)
    return float(LeastSquaresProbe()(features, labels_MN, num_labels).accuracy_M)


def _random_problem(
    num_labels: int, num_samples: int, num_features: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Gaussian features (N, D) and random labels (N,)."""
    features_ND = np.random.default_rng([seed, num_labels, num_features]).standard_normal((num_samples, num_features))
    labels_N = label_table(num_samples, num_labels, num_draws=1, seed=seed, split="train")[0].numpy()
    return features_ND, labels_N


def _fit_least_squares(
    features_ND: NDArray[np.float64], labels_N: NDArray[np.int32], num_labels: int
) -> NDArray[np.floating]:
    """Weight (D, K) of the regression of centred one-hot labels."""
    targets_NK = np.eye(num_labels)[labels_N] - 1 / num_labels
    if len(features_ND) > features_ND.shape[1]:
        return np.linalg.solve(features_ND.T @ features_ND, features_ND.T @ targets_NK)
    return np.linalg.solve(features_ND, targets_NK)  # n = d: the head interpolates


def _least_squares_accuracy(num_labels: int, num_samples: int, num_features: int, seed: int) -> float:
    features_ND, labels_N = _random_problem(num_labels, num_samples, num_features, seed)
    weight_DK = _fit_least_squares(features_ND, labels_N, num_labels)
    return float(((features_ND @ weight_DK).argmax(1) == labels_N).mean())


CHECKS: tuple[Check, ...] = (
    least_squares_simulated,
    head_alone_simulated,
    capacity_simulated,
    separability_simulated,
    logistic_simulated,
    held_out_at_chance,
)
