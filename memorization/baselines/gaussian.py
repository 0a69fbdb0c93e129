"""One quadrature rule for expectations over a standard normal, shared by the baselines.

The trapezoid rule on a fine uniform grid converges faster than any power for smooth integrands that decay at both ends, stays
accurate for the steep ones that large K gives (Gauss-Hermite does not), and always gives the same bits.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

LIMIT = 12.0
STEP = 0.01


@cache
def normal_rule(limit: float = LIMIT, step: float = STEP) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes z and weights w with Σ w·f(z) ≈ E f(Z), Z ~ N(0, 1); read-only arrays. Mass beyond ±12 is 4e-33, ±8 1e-15."""
    num_nodes = round(2 * limit / step) + 1
    nodes = np.linspace(-limit, limit, num_nodes)
    weights = np.exp(-0.5 * nodes * nodes) * (step / np.sqrt(2 * np.pi))
    nodes.flags.writeable = weights.flags.writeable = False
    return nodes, weights
