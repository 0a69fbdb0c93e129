"""λ of the regulariser: what an epoch's line says of it, and how `regularizer.target` steers it by dual ascent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from rlpheads.engine.config.errors import ConfigError, refusal
from rlpheads.engine.config.learning import RegularizerConfig
from rlpheads.engine.training.training import Training


def regularizer_figures(training: Training) -> dict[str, float]:
    """Return λ as it was in this epoch, and λ/K: at chance the gradient of `unlikelihood` is proportional to 1/K."""
    weights, num_labels = training.term_weights, training.run.config.heads.num_labels
    if weights.factor == 0:
        return {}
    per_label = weights.factor_per_label(num_labels)
    return {"regularizer_factor": weights.factor, "regularizer_factor_per_label": per_label}


def steer_factor(training: Training, row: Mapping[str, Any]) -> str | None:
    """Move λ towards `regularizer.target`: dual ascent on ln λ. Every rank computes the same from the merged ledgers.

    The distance is that of the audit heads from the refit on fresh labels of the same clean pass (`eval.refit`), or from the
    head-only baseline where there is none.

    Returns:
        What was done, in one line; None without a target.
    """
    settings, factor = training.run.config.regularizer, training.term_weights.factor
    if factor == 0 or settings.target is None:
        return None
    accuracy_T, line_T = row["audit_rla_clean"], row.get("fresh_refit_clean", training.baselines_T)
    excess = fmean(accuracy_T[tap] - line_T[tap] for tap in training.step.routes.terms.regularized)
    moved = next_factor(factor, settings, excess - settings.target)
    training.set_factor(moved)
    line = "the refit on fresh labels" if "fresh_refit_clean" in row else "a head alone"
    said = f"λ {factor:.3g} → {moved:.3g}: audit heads are {excess:+.2%} from {line}, target {settings.target:+.2%}"
    return f"{said}; λ is at its limit, the target is out of its reach" if moved == factor else said


def target_errors(settings: RegularizerConfig, baselines_T: Sequence[float], chance: float) -> Iterator[ConfigError]:
    """Yield an error for a target that no head can reach: above 1, or below chance, from where a head alone is at all taps."""
    if settings.target is None or not baselines_T:
        return
    low, high = chance - max(baselines_T), 1 - min(baselines_T)
    if not low < settings.target < high:
        allowed = f"between {low:+.3f} (chance) and {high:+.3f} (every label known), by what a head alone reaches here"
        yield refusal("regularizer.target", settings.target, allowed)


def next_factor(factor: float, settings: RegularizerConfig, too_much: float) -> float:
    """Return the next λ: at most ten times up or down at once, and within a thousand times where it started.

    Without these bounds λ would wind down by many orders of magnitude while the heads have learned nothing yet, and
    take as long to come back.
    """
    step = min(max(settings.target_rate * too_much, -math.log(10)), math.log(10))
    return min(max(factor * math.exp(step), settings.factor / 1000), settings.factor * 1000)
