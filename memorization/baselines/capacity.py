"""Capacity of a linear head (perceptron capacity for K classes): samples per feature up to which it fits all random labels.

α_c = (K−1)/E‖g − Π(g)‖², g standard normal in R^K and Π the projection onto the cone {v_y ≥ v_k for all k}.

How it is computed. The projection lowers some g_k to a common height t, to which it lifts g_y: t − g_y = Σ_{k≠y} (g_k − t)₊, a
one-dimensional equation. By the Steiner formula for polyhedral cones (the squared length of a projection has, given the face
it falls on, the face's dimension as its mean) E‖g − Π(g)‖² = E J, where J counts the labels that are lowered. And P(J = j)
is a number of choices times two independent events, since a mean is independent of the deviations from it:

    P(J = j) = C(K−1, j) · q_j · E Φ(Z/√(j+1))^{K−1−j},

q_j: of j+1 standard normals, j given ones exceed the mean of all; Φ(…): the other labels stay below that mean. With S the sum
of j half-normals, q_j = (j+1)·2^{−j}·√(2π/(j+1))·E φ(S), and by Parseval E φ(S) = (1/2π)∫ e^{−u²/2} w(u/√2)^j du with w the
Faddeeva function. The contour is moved through the saddle point, where the integrand has no cancellation. J stays small
(about 16 at K = 1e5), so the sum has few terms.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rlpheads.memorization.arguments import check_num_labels

_U = np.linspace(-9.0, 9.0, 721)
_C = np.linspace(-12.0, 12.0, 4801)
_NEGLIGIBLE = 1e-13


@lru_cache(maxsize=256, typed=True)  # 10.0 must not be answered from the cache of 10
def capacity(num_labels: int) -> float:
    """Capacity α_c of a linear head with K labels, in samples per feature: 2 at K = 2, 20.7 at 100, 6404 at 1e5.

    For n/d below it a head on features in general position (Gaussian, n and d large) fits every random label, above it
    does not. Deterministic, relative error below 1e-9 (K up to 1e9).

    Raises:
        ValueError: K is not an integer of at least 2.
    """
    num_labels = check_num_labels(num_labels)
    probability = lowered_distribution(num_labels)
    return (num_labels - 1) / float(np.arange(len(probability)) @ probability)


def lowered_distribution(num_labels: int) -> NDArray[np.float64]:
    """P(J = j) for j = 0, 1, …: how many labels the projection lowers; cut where what remains is below 1e-12."""
    num_labels = check_num_labels(num_labels)
    others = num_labels - 1
    log_choices = 0.0  # log C(K−1, j), summed up: a difference of log-gammas loses every digit at large K
    terms: list[float] = []
    for j in range(num_labels):
        terms.append(math.exp(log_choices + _log_above_mean(j) + _log_rest_below(j, others - j)))
        if sum(terms) > 0.5 and terms[-1] < _NEGLIGIBLE:
            break
        log_choices += math.log(max(others - j, 1) / (j + 1))
    return np.array(terms)


def _log_above_mean(j: int) -> float:
    """Log q_j: of j+1 standard normals, j given ones exceed the mean of all."""
    if j == 0:
        return 0.0
    from scipy import optimize, special  # a run begins without them: `capacity_warning`

    def exponent(c: float) -> float:
        return 0.5 * c * c + j * math.log(special.erfcx(c / math.sqrt(2)))

    saddle = float(optimize.minimize_scalar(exponent, bounds=(0.0, 2.0 * math.sqrt(j) + 2.0), method="bounded").x)
    shifted = _U + 1j * saddle
    log_integrand = -0.5 * shifted**2 + j * np.log(special.wofz(shifted / math.sqrt(2)))
    peak = exponent(saddle)
    integral = float(np.exp(log_integrand - peak).real.sum()) * float(_U[1] - _U[0])
    log_scale = math.log(j + 1) - j * math.log(2) - 0.5 * math.log(2 * math.pi * (j + 1))
    return log_scale + peak + math.log(integral)


def _log_rest_below(j: int, num_rest: int) -> float:
    """Log E Φ(Z/√(j+1))^num_rest."""
    from scipy import special

    log_density = -0.5 * (j + 1) * _C**2 + 0.5 * math.log((j + 1) / (2 * math.pi)) + math.log(_C[1] - _C[0])
    return float(special.logsumexp(log_density + num_rest * special.log_ndtr(_C)))
