"""Early stopping: a run ends when a figure of its evaluations has not improved for `patience` evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlpheads.engine.config.learning import EarlyStoppingConfig


def is_best_epoch(metric: str, epochs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last of some epochs has a figure that is better than those of all before it.

    Args:
        metric: the figure; that of a loss is better where it is smaller.
        epochs: lines of metrics.jsonl; those without an evaluation count for nothing.
    """
    *before, last = [row.get(metric) for row in epochs]
    return last is not None and all(_sign(metric) * (last - value) > 0 for value in before if value is not None)


def _sign(metric: str) -> int:
    return -1 if metric.endswith("loss") else 1


def stop_reason(settings: EarlyStoppingConfig, epochs: Iterable[Mapping[str, Any]]) -> str | None:
    """Say why a run ends now, or None while it goes on.

    The figures of the epochs are all there is to know, so that a resumed run decides as if it had never stopped.

    Args:
        settings: the figure and how long it may stay where it is.
        epochs: the epochs' lines of metrics.jsonl, in order; those without an evaluation count for nothing.
    """
    if settings.patience is None:
        return None
    sign = _sign(settings.metric)
    best, best_epoch, waited = None, 0, 0
    for row in epochs:
        if settings.metric not in row:
            continue
        value = row[settings.metric]
        if value is None:  # not finite, which no value is better than
            waited += 1
        elif best is None or sign * (value - best) > settings.min_delta:
            best, best_epoch, waited = value, row["epoch"], 0
        else:
            waited += 1
    if waited < settings.patience:
        return None
    by = f" by more than {settings.min_delta:g}" if settings.min_delta else ""
    found = f"{best:.6g}, of epoch {best_epoch}, for {waited} evaluations"
    return f"early_stopping: {settings.metric} is not better{by} than {found}"
