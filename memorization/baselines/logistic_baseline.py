"""Head-only baseline of a logistic head: its fit of random labels on Gaussian features, as a function of K and α = n/d.

For K = 2 the proportional limit is a system of two equations in two unknowns; for K > 2 no closed form is at hand, so the
head is fitted on simulated features once and the result kept on disk.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from rlpheads.memorization.arguments import check_alpha, check_count, check_num_labels
from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.baselines.capacity import capacity
from rlpheads.memorization.baselines.gaussian import normal_rule
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping

MIN_ALPHA = 2.001
"""Between 2 and this α the two-label limit is taken here: any n below a million is inside its own transition there."""
CACHE_VERSION = 1
MIN_FEATURES = 16
MIN_SAMPLES = 2000
MAX_LOGITS = 2**25
TOTAL_SAMPLES = 8000


@dataclass(frozen=True)
class LogisticBaseline:
    """Fit of a logistic head on features independent of the labels.

    `accuracy` is its random-label accuracy on the samples it was fitted to, `bits_per_sample` the mean of log2 K + log2 p_y,
    `bits_per_parameter` the sum of these over d·(K−1).
    """

    accuracy: float
    bits_per_sample: float
    bits_per_parameter: float


_FIGURES = [field.name for field in fields(LogisticBaseline)]


def logistic_rla(num_labels: int, alpha: float, *, cache_dir: Path | str | None = None) -> LogisticBaseline:
    """Baseline of a logistic head without penalty on Gaussian features.

    Args:
        num_labels: K. K = 2 is solved exactly in the limit n, d → ∞; K > 2 is simulated and cached.
        alpha: n/d. At or below the capacity of K every label is fitted: accuracy 1, log2 K bits per sample.
        cache_dir: folder of simulated results; default $RLPHEADS_CACHE, else ~/.cache/rlpheads.

    Raises:
        ValueError: K < 2, α not positive, or a simulation whose logits would not fit (use `least_squares_rla`).
    """
    num_labels = check_num_labels(num_labels)
    check_alpha(alpha)
    if alpha <= capacity(num_labels) * (1 + 1e-9):
        bits = math.log2(num_labels)
        return LogisticBaseline(1.0, bits, bits * alpha / (num_labels - 1))
    if num_labels == 2:
        return _two_label_limit(max(float(alpha), MIN_ALPHA))
    return _cached_simulation(num_labels, float(alpha), Path(cache_dir) if cache_dir else default_cache_dir())


def default_cache_dir() -> Path:
    """$RLPHEADS_CACHE, else ~/.cache/rlpheads."""
    return Path(os.environ.get("RLPHEADS_CACHE") or Path.home() / ".cache" / "rlpheads")


@lru_cache(maxsize=256)
def _two_label_limit(alpha: float) -> LogisticBaseline:
    """The head's fit in the limit n, d → ∞ for α > 2."""
    log_spread, log_step = _solve_two_labels(alpha)
    spread, step = math.exp(log_spread), math.exp(log_step)
    nodes, weights = normal_rule()
    loss = float(weights @ np.logaddexp(0, -_proximal_points(spread * nodes, step)))
    bits = 1 - loss / math.log(2)
    return LogisticBaseline(float(special.ndtr(step / (2 * spread))), bits, bits * alpha)


@lru_cache(maxsize=256)
def _solve_two_labels(alpha: float) -> tuple[float, float]:
    """Log of (σ, λ) that solve the system for κ = 1/α < 1/2 and no signal.

    With every label turned to +1 (the features are symmetric), a fitted margin is u = prox_{λℓ}(σZ), ℓ(u) = log(1 + e^−u),
    where  κσ² = E(u − σZ)²  and  κ = E[λℓ''(u)/(1 + λℓ''(u))].  u > 0 exactly when σZ > −λ/2.

    Source: Sur and Candès, PNAS 116 (2019) 14516-14525, system (5) at γ = 0.
    """
    kappa = 1 / alpha
    nodes, weights = normal_rule()

    def residuals(log_unknowns: NDArray[np.float64]) -> list[float]:
        spread, step = np.exp(np.clip(log_unknowns, -80, 80))
        margins = _proximal_points(spread * nodes, step)
        moved = weights @ (margins / spread - nodes) ** 2
        curvature = step * special.expit(margins) * special.expit(-margins)
        shrunk = weights @ (curvature / (1 + curvature))
        return [math.log(moved / kappa), math.log(shrunk / kappa)]

    solution = optimize.root(residuals, _initial_guess(alpha), method="hybr", options={"xtol": 1e-12})
    if not np.max(np.abs(residuals(solution.x))) < 1e-7:
        raise ArithmeticError(f"the logistic system did not converge at alpha = {alpha}; capacity is 2")
    return float(solution.x[0]), float(solution.x[1])


def _initial_guess(alpha: float) -> tuple[float, float]:
    """Start of the root search: exact for α → ∞ (ℓ'' = 1/4 everywhere); near capacity the solution at a larger α."""
    if alpha < 3:
        return _solve_two_labels(2 + 1.5 * (alpha - 2))
    step = 4 / (alpha - 2)
    return math.log(step * math.sqrt(alpha) / 2), math.log(step)


def _proximal_points(points: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Solve u = s + step·expit(−u) for each s: bisection in the bracket [s, s + step], then Newton to the last digit."""
    low, high = points, points + step
    for _ in range(40):
        middle = 0.5 * (low + high)
        below = middle - points < step * special.expit(-middle)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    margins = 0.5 * (low + high)
    for _ in range(2):
        probability = special.expit(-margins)
        margins = margins - (margins - points - step * probability) / (1 + step * probability * (1 - probability))
    return margins


def _cached_simulation(num_labels: int, alpha: float, folder: Path) -> LogisticBaseline:
    path = folder / f"logistic_v{CACHE_VERSION}_labels={num_labels}_alpha={alpha:.6g}.json"
    try:
        found = parse_mapping(path.read_bytes(), dict.fromkeys(_FIGURES, "number"))
        return LogisticBaseline(**{name: found[name] for name in _FIGURES})
    except (OSError, DamagedJsonError):
        pass  # not there, or not whole: compute it
    alpha = float(f"{alpha:.6g}")  # what the file's name says
    num_features = _simulated_features(num_labels, alpha)
    num_samples = round(alpha * num_features)
    num_draws = math.ceil(TOTAL_SAMPLES / num_samples)
    results = [simulate_logistic(num_labels, num_samples, num_features, seed) for seed in range(num_draws)]
    mean = LogisticBaseline(*np.mean([list(asdict(result).values()) for result in results], axis=0).tolist())
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(mean)))
    return mean


def _simulated_features(num_labels: int, alpha: float) -> int:
    """Enough features for the limit to be near, as few as the budget of n·K logits allows."""
    affordable = int(MAX_LOGITS / (alpha * num_labels))
    if affordable < MIN_FEATURES:
        raise ValueError(
            f"a logistic head with {num_labels} labels at alpha = {alpha:g} is too large to simulate "
            f"(more than {MAX_LOGITS} logits); use the least-squares baseline"
        )
    return min(affordable, max(64, math.ceil(MIN_SAMPLES / alpha)))


def simulate_logistic(num_labels: int, num_samples: int, num_features: int, seed: int) -> LogisticBaseline:
    """Fit a multinomial logistic head without penalty to random labels on Gaussian features, by L-BFGS in fp64.

    The accuracy's standard deviation is about .45/√n for K = 2. Below capacity the loss has no minimum: the fit
    stops where its gradient is below 1e-8, with every label fitted.
    """
    num_labels, seed = check_num_labels(num_labels), check_count("seed", seed, 0)
    num_samples, num_features = check_count("num_samples", num_samples), check_count("num_features", num_features)
    generator = np.random.default_rng([seed, num_labels, num_samples, num_features])
    features_ND = generator.standard_normal((num_samples, num_features))
    labels_N = generator.integers(num_labels, size=num_samples)
    rows_N = np.arange(num_samples)

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits_NK = features_ND @ flat.reshape(num_features, num_labels)
        log_probability_NK = special.log_softmax(logits_NK, axis=1)
        loss = -log_probability_NK[rows_N, labels_N].mean()
        error_NK = np.exp(log_probability_NK)
        error_NK[rows_N, labels_N] -= 1
        return float(loss), (features_ND.T @ error_NK).ravel() / num_samples

    start = np.zeros(num_features * num_labels)
    fit = optimize.minimize(
        loss_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-8},
    )
    logits_NK = features_ND @ fit.x.reshape(num_features, num_labels)
    bits = math.log2(num_labels) - float(fit.fun) / math.log(2)
    return LogisticBaseline(
        accuracy=float((logits_NK.argmax(1) == labels_N).mean()),
        bits_per_sample=bits,
        bits_per_parameter=bits * num_samples / (num_features * (num_labels - 1)),
    )
