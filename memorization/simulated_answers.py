"""Known answers reached by simulation: heads that are really fitted to random labels on Gaussian features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from rlpheads.memorization import exact
from rlpheads.memorization.baselines import least_squares_rla
from rlpheads.memorization.closed_form_answers import LEAST_SQUARES
from rlpheads.memorization.intervals import binomial_bounds
from rlpheads.memorization.known_answer import Check, KnownAnswer
from rlpheads.memorization.labels import label_table
from rlpheads.memorization.logistic_baseline import logistic_rla, simulate_logistic

NUM_SAMPLES = 2000
NUM_DRAWS = 4


def least_squares_simulated() -> Sequence[KnownAnswer]:
    """Least-squares head, fitted (n=2000, mean of 4)."""
    rows = []
    for num_labels, alpha in LEAST_SQUARES:
        accuracies = [_least_squares_accuracy(num_labels, NUM_SAMPLES // alpha, seed) for seed in range(NUM_DRAWS)]
        expected = least_squares_rla(num_labels, alpha)
        name = f"accuracy, K={num_labels}, n/d={alpha}"
        rows.append(KnownAnswer(name, expected, float(np.mean(accuracies)), 0.02))
    rows.append(KnownAnswer("accuracy, K=10, n/d=1", 1.0, _least_squares_accuracy(10, NUM_SAMPLES, 0), 0.0))
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
        fits = [simulate_logistic(2, NUM_SAMPLES, round(NUM_SAMPLES / alpha), seed) for seed in range(NUM_DRAWS)]
        limit = logistic_rla(2, alpha)
        accuracy = float(np.mean([fit.accuracy for fit in fits]))
        bits = float(np.mean([fit.bits_per_parameter for fit in fits]))
        rows.append(KnownAnswer(f"accuracy, n/d={alpha}", limit.accuracy, accuracy, 0.02))
        rows.append(KnownAnswer(f"bits per parameter, n/d={alpha}", limit.bits_per_parameter, bits, 0.05))
    below = simulate_logistic(2, NUM_SAMPLES, round(NUM_SAMPLES / 1.5), 0)
    rows.append(KnownAnswer("accuracy, n/d=1.5", 1.0, below.accuracy, 0.0))
    return rows


def held_out_at_chance() -> Sequence[KnownAnswer]:
    """Held-out accuracy of fitted heads, within exact binomial bounds at 1e-4."""
    num_held_out, num_features = 20_000, 400
    rows = []
    for num_labels in (2, 10, 100):
        generator = np.random.default_rng([num_labels])
        weight_KD = _fit_least_squares(*_random_problem(num_labels, NUM_SAMPLES, num_features, seed=0)).T
        labels_N = label_table(num_held_out, num_labels, num_draws=1, seed=0, split="heldout")[0].numpy()
        scores_NK = generator.standard_normal((num_held_out, num_features)) @ weight_KD.T
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


def _random_problem(
    num_labels: int, num_samples: int, num_features: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int32], int]:
    features_ND = np.random.default_rng([seed, num_labels, num_features]).standard_normal((num_samples, num_features))
    labels_N = label_table(num_samples, num_labels, num_draws=1, seed=seed, split="train")[0].numpy()
    return features_ND, labels_N, num_labels


def _fit_least_squares(
    features_ND: NDArray[np.float64], labels_N: NDArray[np.int32], num_labels: int
) -> NDArray[np.float64]:
    """Weight (D, K) of the regression of centred one-hot labels."""
    targets_NK = np.eye(num_labels)[labels_N] - 1 / num_labels
    if len(features_ND) > features_ND.shape[1]:
        return np.linalg.solve(features_ND.T @ features_ND, features_ND.T @ targets_NK)
    return np.linalg.solve(features_ND, targets_NK)  # n = d: the head interpolates


def _least_squares_accuracy(num_labels: int, num_features: int, seed: int) -> float:
    features_ND, labels_N, _ = _random_problem(num_labels, NUM_SAMPLES, num_features, seed)
    weight_DK = _fit_least_squares(features_ND, labels_N, num_labels)
    return float(((features_ND @ weight_DK).argmax(1) == labels_N).mean())


CHECKS: tuple[Check, ...] = (least_squares_simulated, separability_simulated, logistic_simulated, held_out_at_chance)
