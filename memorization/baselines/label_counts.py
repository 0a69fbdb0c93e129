"""Least-squares head with an intercept on labels drawn i.i.d.: the average of its accuracy over how often each label occurs.

With an intercept and centred one-hot targets, row i of the fit is p + Σ_j H_ij·(e_{y_j} − p), p the labels' shares and H the
projection onto the centred features: n rows, rank d, leverage h = H_ii ≈ d/(n−1). So a row of label y scores, on label k,

    (1−h)·p_k + h·δ_ky + √(h(1−h)·p_k)·Z_k,    Z_k i.i.d. standard normal:

a label that occurs often has a higher intercept and a wider spread, wins more often than it is right, and costs accuracy. A
row's own label occurs c times, c − 1 ~ Binomial(n−1, 1/K); given c, any other occurs Binomial(n−c, 1/(K−1)) times, taken as
independent of one another. Hence E_c ∫φ(z)·F_c(z)^{K−1} dz, F_c the chance that one other label scores below the own one. With
equal shares and n → ∞ that is `least_squares_rla`'s formula.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from rlpheads.memorization.baselines.gaussian import normal_rule

_LIMIT, _STEP = 8.0, 0.1  # standard deviations; a step of .02 changes the accuracy by less than 1e-6
_NEGLIGIBLE = 1e-14


def accuracy_over_label_counts(num_labels: int, num_samples: int, num_features: int) -> float:
    """Accuracy of the head on its own n rows for n > d + 1, in [0, 1]; 1 to 2 ms."""
    leverage = num_features / (num_samples - 1)
    nodes_Z, weights_Z = normal_rule(_LIMIT, _STEP)
    others = num_samples - 1
    own_C, own_weight_C = _binomial_rule(np.array([others]), 1 / num_labels)
    own_C, own_weight_C = own_C[0] + 1, own_weight_C[0]
    other_CO, other_weight_CO = _binomial_rule(num_samples - own_C, 1 / (num_labels - 1))
    spread = math.sqrt(leverage * (1 - leverage) / num_samples)  # times √count: of a share's score
    share = (1 - leverage) / num_samples
    own_score_CZ = (share * own_C)[:, None] + leverage + spread * np.sqrt(own_C)[:, None] * nodes_Z
    # A label that never occurs scores exactly 0: a spread of nothing.
    other_spread_CO = np.maximum(spread * np.sqrt(other_CO), 1e-300)
    distance_COZ = ((share * other_CO)[:, :, None] - own_score_CZ[:, None, :]) / other_spread_CO[:, :, None]
    above_CZ = np.einsum("co,coz->cz", other_weight_CO, _normal_distribution(distance_COZ))
    with np.errstate(divide="ignore"):  # an own score that every other label exceeds
        hit_CZ = np.exp((num_labels - 1) * np.log1p(-np.minimum(above_CZ, 1.0)))
    return min(1.0, float(own_weight_C @ hit_CZ @ weights_Z))


def _binomial_rule(
    trials_C: NDArray[np.float64], probability: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts and weights, (C, O) each, with Σ_o w·f(count) ≈ E f(count), count ~ Binomial(trials, probability).

    A lattice of whole counts about the mean, one standard deviation apart (every count where that is below 2), weighed by
    their probabilities: the trapezoid rule, which on so smooth a mass is right to nine digits.
    """
    trials_C = np.asarray(trials_C, dtype=np.float64)
    mean_C = trials_C * probability
    deviation = math.sqrt(float(mean_C.max()) * (1 - probability))
    step = max(1, int(deviation))
    tail = 25 if 0 < deviation < 2 else 1  # few counts: the upper tail is Poisson's
    first, last = -math.ceil((_LIMIT * deviation + 1) / step), math.ceil((_LIMIT * deviation + tail) / step)
    steps_O = np.arange(first, last + 1, dtype=np.float64)
    count_CO = np.floor(mean_C)[:, None] + step * steps_O
    possible_CO = (count_CO >= 0) & (count_CO <= trials_C[:, None])
    count_CO = np.where(possible_CO, count_CO, 0.0)
    left_CO = trials_C[:, None] - count_CO
    log_choices_CO = _log_factorial(trials_C[:, None]) - _log_factorial(count_CO) - _log_factorial(left_CO)
    log_mass_CO = log_choices_CO + count_CO * math.log(probability)
    if probability < 1:  # else nothing is left
        log_mass_CO += left_CO * math.log1p(-probability)
    weight_CO = np.where(possible_CO, np.exp(log_mass_CO), 0.0)
    weight_CO /= weight_CO.sum(1, keepdims=True)
    kept_O = (weight_CO > _NEGLIGIBLE).any(0)
    return count_CO[:, kept_O], weight_CO[:, kept_O]


def _normal_distribution(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Φ of every value. torch's functions, as a run begins with them, and scipy takes a tenth of a second to load."""
    return 0.5 * torch.special.erfc(torch.from_numpy(values) * -math.sqrt(0.5)).numpy()


def _log_factorial(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return torch.special.gammaln(torch.from_numpy(counts + 1)).numpy()
