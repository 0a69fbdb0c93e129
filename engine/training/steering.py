"""λ of the regulariser: what an epoch's line says of it, and how `regularizer.target` steers it by dual ascent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rlpheads.engine.config.learning import RegularizerConfig
from rlpheads.engine.training.training import Training


def regularizer_figures(training: Training) -> dict[str, float]:
    """Return λ as it was in this epoch, and λ/K: at chance the gradient of `unlikelihood` is proportional to 1/K."""
    weights, num_labels = training.term_weights, training.run.config.heads.num_labels
    if weights.factor == 0:
        return {}
    per_label = weights.factor_per_label(num_labels)
    return {"regularizer_factor": weights.factor, "regularizer_factor_per_label": per_label}


def steer_factor(training: Training, row: Mapping[str, Any]) -> None:
    """Move λ towards `regularizer.target`: dual ascent on ln λ. Every rank computes the same from the merged ledgers."""
    settings, factor = training.run.config.regularizer, training.term_weights.factor
    if factor == 0 or settings.target is None:
        return
    accuracy_T, baseline_T = row["audit_rla_clean"], training.baselines_T
    excess = fmean(accuracy_T[tap] - baseline_T[tap] for tap in training.step.routes.terms.regularized)
    training.set_factor(next_factor(factor, settings, excess - settings.target))


def next_factor(factor: float, settings: RegularizerConfig, too_much: float) -> float:
    """Return the next λ: at most ten times up or down at once, and within a thousand times where it started.

    Without these bounds λ would wind down by many orders of magnitude while the heads have learned nothing yet, and
    take as long to come back.
    """
    step = min(max(settings.target_rate * too_much, -math.log(10)), math.log(10))
    return min(max(factor * math.exp(step), settings.factor / 1000), settings.factor * 1000)
